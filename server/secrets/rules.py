"""What a credential looks like on a line.

The formats of Artifactory, AWS, Azure, Discord, GitHub, GitLab, IBM, JWT, Mailchimp, npm, OpenAI,
PyPI, SendGrid, Slack, SoftLayer, Square, Stripe, Telegram and Twilio, basic authentication and the
words before a secret follow detect-secrets 1.5.0 (Yelp, Apache-2.0, the project's LICENSE; its list
of words comes from Bandit, (c) 2014 Hewlett-Packard, MIT-like). Bounds and gates are ours, and so
are the newer formats, as their makers publish them. Every repetition is bounded, so that a long
line costs what it is long.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Where values stand without quotes.
CONFIG_LANGUAGES = frozenset(
    ("dockerfile", "dotenv", "env", "ini", "plaintext", "properties", "shellscript", "toml", "yaml")
)
Span = tuple[int, int]


class Rule(NamedTuple):
    """One kind of credential.

    Attributes:
        name: of the kind.
        cues: a line without any of these in it, in small letters, has none of the kind.
        source: pattern that finds one; its group "secret" is what is hidden, the whole match if it
            has none.
        gate: whether what was found is one.
        is_of_config: holds only in languages where values stand without quotes.
        flags: of the pattern.
    """

    name: str
    cues: tuple[str, ...]
    source: str
    gate: Callable[[str], bool]
    is_of_config: bool = False
    flags: int = re.IGNORECASE


_SEQUENTIAL = "abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz01234567890"
# What examples have where a password stands.
_EXAMPLES = frozenset(
    "changeme example pass passwd password pw pwd secret token user username xxx".split()
)
_TEMPLATE = re.compile(r"^[$%][A-Za-z_]*\d{0,2}[$%]?$|[$%][({]|^\\|[{}<>]|\*{3}|\.{3}|(.)\1{5}")
# Names in snake_case and with other joints, and in CamelCase, with the digits that names have.
_NAME = re.compile(
    r"[^\W\d]+(?:[-_./:][^\W\d]+)*[-_]?\d{0,3}|(?=.*[a-z]{2})(?:[A-Z][a-z]{2,}\d?|[A-Z]\d)+"
)


def _any(_: str) -> bool:
    return True


def _has_digit(value: str) -> bool:
    return any(char.isdigit() for char in value)


def _is_password(value: str) -> bool:
    """Whether a value behind "password" is one: no word, template or example."""
    plain = value.lower()
    return (
        not _TEMPLATE.search(value)
        and plain not in _EXAMPLES
        and plain not in _SEQUENTIAL
        and bool(re.search(r"[\d!@#$^&*+=?~|]", value))
    )


def _is_key(value: str) -> bool:
    """Whether a value behind "key", "secret" or "token" is one: no name, either."""
    return (
        _is_password(value)
        and len(value) >= 8
        and _has_digit(value)
        and _NAME.fullmatch(value) is None
    )


def _is_no_example(value: str) -> bool:
    return not _TEMPLATE.search(value) and value.lower() not in _EXAMPLES


_PASSWORDS = r"(?:password|passwd|passphrase|pwd|contrase(?:ñ|n)a|(?:db|database|key)[_-]?pass)"
_KEYS = (
    r"(?:(?:api|auth|service|account|access|db|database|priv|private|client|encryption|signing)"
    r"[_-]?key|secret|token(?!iz))"
)
# The rest of a name, its closing quote or bracket, a type.
_TO_VALUE = r"[\w-]{0,40}[\]'\"`]{0,2}[ \t]{0,8}(?::[ \t]{0,4}\w{1,40}[ \t]{0,4}(?==))?"
_OPERATOR = r"(?:=>|:=|={1,3}|!={1,2}|:|\()[ \t]{0,8}"
_QUOTED = r"@?[bBrRuU]{0,2}(?P<quote>[\"'`])(?P<secret>[^\"'`\s]{6,200})(?P=quote)"
_BARE = r"(?P<secret>[^\"'`\s,;(){}\[\]]{6,200})[ \t]{0,40}(?:[#;].{0,200})?$"
_PASSWORD_CUES = ("passw", "passp", "pwd", "contrase", "db_pass", "db-pass", "dbpass")
_PASSWORD_CUES += ("database_pass", "databasepass", "key_pass", "key-pass", "keypass")
_KEY_CUES = ("key", "secret", "token")


def _after(words: str, value: str) -> str:
    return words + _TO_VALUE + _OPERATOR + value


def _before(words: str) -> str:
    return _QUOTED + r"[ \t]{0,8}[!=]={1,2}[ \t]{0,8}[\w.]{0,40}?" + words


def _format(
    name: str, cues: str, source: str, gate: Callable[[str], bool] = _any, flags: int = 0
) -> Rule:
    return Rule(name, tuple(cues.split()), source, gate, flags=flags)


_IBM = r"(?:ibm|bluemix|bx|iam|cos|softlayer|cloudant)[\w-]{0,40}"
RULES: tuple[Rule, ...] = (
    _format("AWS key id", "akia asia abia acca a3t",
            r"(?<![A-Z0-9])(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}(?![A-Z0-9])"),
    _format("AWS secret key", "aws",
            r"aws.{0,20}?(?:key|pwd|pw|password|pass|token|secret).{0,20}?"
            r"(?<![0-9a-zA-Z/+])(?P<secret>[0-9a-zA-Z/+]{40})(?![0-9a-zA-Z/+])",
            _has_digit, re.IGNORECASE),
    _format("Artifactory", "akc ap",
            r"(?:(?<=[\s=:\"'])|^)(?:AKC[a-zA-Z0-9]{10,200}|AP[\dABCDEF][a-zA-Z0-9]{8,200})"
            r"(?=[\s\"']|$)", _has_digit),
    _format("Azure storage key", "accountkey=", r"AccountKey=(?P<secret>[a-zA-Z0-9+/=]{88})"),
    _format("basic authentication", "://",
            r"://[^:/?#\[\]@!$&'\"()*+,;=\s]{1,100}:(?P<secret>[^:/?#\[\]@!$&'\"()*+,;=\s]{3,200})@",
            _is_no_example),
    _format("Discord bot", ".",
            r"(?<![\w-])[MNO][a-zA-Z\d_-]{23,25}\.[a-zA-Z\d_-]{6}\.[a-zA-Z\d_-]{27,38}(?![\w-])"),
    _format("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
            r"gh[pousr]_[A-Za-z0-9_]{36,255}|github_pat_\w{40,255}"),
    _format("GitLab token", "glpat- gldt- glft- glsoat- glrt- gr1348941 glcbt- glptt-",
            r"(?:gl(?:pat|dt|ft|soat|rt|ptt|cbt)-|GR1348941)[A-Za-z0-9_.-]{20,70}(?!\w)"),
    _format("IBM key", "ibm bluemix bx iam cos softlayer cloudant",
            _IBM + r"(?:key|pass|pw|token|secret|id)[\w-]{0,20}[\]'\"]{0,2}[ \t]{0,8}"
            r"(?:=>|:=|=|:|,)[ \t]{0,8}[\"']?(?P<secret>[A-Za-z0-9_-]{24,100})(?![\w-])",
            _has_digit, re.IGNORECASE),
    _format("JSON web token", "eyj",
            r"(?<!\w)eyJ[\w=-]{8,4000}\.[\w=-]{8,8000}(?:\.[\w+/=-]{0,4000})?"),
    _format("Mailchimp", "-us", r"(?<![0-9a-z])[0-9a-z]{32}-us[0-9]{1,2}(?!\d)"),
    _format("npm token", "_authtoken npm_",
            r"_authToken[ \t]{0,4}=[ \t]{0,4}(?P<secret>[^\s$\"']{20,200})"
            r"|npm_[A-Za-z0-9]{36}(?!\w)"),
    _format("key of a language model's service", "sk-",
            r"(?<![\w-])sk-[A-Za-z0-9_-]{20,250}", _has_digit),
    _format("Hugging Face token", "hf_", r"(?<!\w)hf_[A-Za-z0-9]{30,60}(?!\w)"),
    _format("PyPI token", "pypi-age", r"pypi-AgE[A-Za-z0-9_-]{60,1000}"),
    _format("SendGrid", "sg.", r"SG\.[a-zA-Z0-9_-]{22}\.[a-zA-Z0-9_-]{43}"),
    _format("Slack token", "xox xapp-",
            r"xox[abposer]-(?:[\w]{1,100}-){1,6}[a-z0-9]{6,200}|xapp-\d-[\w-]{20,200}",
            _has_digit, re.IGNORECASE),
    _format("Slack hook", "hooks.slack.com",
            r"hooks\.slack\.com/(?:services|workflows)/(?P<secret>[A-Z]\w{1,40}/[A-Z]\w{1,40}/\w{1,60})"),
    _format("SoftLayer", "api.softlayer.com/soap",
            r"api\.softlayer\.com/soap/v3(?:\.1)?/(?P<secret>[a-z0-9]{64})", flags=re.IGNORECASE),
    _format("Square", "sq0csp- sq0atp-", r"sq0(?:csp|atp)-[0-9A-Za-z_-]{22,43}"),
    _format("Stripe", "k_live_ k_test_", r"[rs]k_(?:live|test)_[0-9a-zA-Z]{24,120}"),
    _format("Telegram bot", ":", r"(?<![\w-])\d{8,10}:[0-9A-Za-z_-]{35}(?![\w-])"),
    _format("Twilio", "ac sk", r"(?<!\w)(?:AC|SK)[a-z0-9]{32}(?!\w)", _has_digit),
    _format("Google key", "aiza gocspx- ya29.",
            r"AIza[0-9A-Za-z_-]{35}(?![\w-])|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,500}"),
    _format("other tokens", "dop_v1_ shpat_ shpss_ age-secret-key- lin_api_ pscale_tkn_",
            r"dop_v1_[a-f0-9]{64}|shp(?:at|ss)_[a-fA-F0-9]{32}|AGE-SECRET-KEY-1[0-9A-Z]{58}"
            r"|lin_api_\w{40}|pscale_tkn_[\w.-]{32,64}"),
    Rule("password", _PASSWORD_CUES, _after(_PASSWORDS, _QUOTED), _is_password),
    Rule("password compared", _PASSWORD_CUES, _before(_PASSWORDS), _is_password),
    Rule("named key", _KEY_CUES, _after(_KEYS, _QUOTED), _is_key),
    Rule("named key compared", _KEY_CUES, _before(_KEYS), _is_key),
    Rule("bare password", _PASSWORD_CUES, _after(_PASSWORDS, _BARE), _is_password, True),
    Rule("bare named key", _KEY_CUES, _after(_KEYS, _BARE), _is_key, True),
)  # fmt: skip


def found(text: str, is_config: bool) -> list[Span]:
    """Return the spans of credentials in whole lines, in no order; they may overlap.

    A line's are the same whatever stands above and below it.
    """
    # Of all characters this alone would change the length.
    small = text.replace("\u0130", "i").lower()
    spans: list[Span] = []
    for rule in RULES:
        if rule.is_of_config and not is_config:
            continue
        scanned: set[int] = set()
        for cue in rule.cues:
            at = small.find(cue)
            while at >= 0:
                start, stop = line_start(text, at), line_stop(text, at)
                if start not in scanned:
                    scanned.add(start)
                    spans += _matches(rule, text, start, stop)
                at = small.find(cue, stop)
    return spans


def _matches(rule: Rule, text: str, start: int, stop: int) -> Iterator[Span]:
    pattern = _compiled(rule.source, rule.flags)
    has_group = "secret" in pattern.groupindex
    for match in pattern.finditer(text, start, stop):
        # An alternative without the group is a secret as a whole.
        group = "secret" if has_group and match["secret"] is not None else 0
        if rule.gate(match[group]):
            yield match.span(group)


# Most texts have the cues of few: the server starts sooner.
@functools.cache
def _compiled(source: str, flags: int) -> re.Pattern[str]:
    return re.compile(source, flags)


def line_start(text: str, offset: int) -> int:
    """Return the start of the line that `offset` is in; every CR and LF ends one here."""
    start = text.rfind("\n", 0, offset) + 1
    return max(start, text.rfind("\r", start, offset) + 1)


def line_stop(text: str, offset: int) -> int:
    """Return where the line that `offset` is in ends, without its CR or LF."""
    stop = text.find("\n", offset)
    stop = len(text) if stop < 0 else stop
    carriage = text.find("\r", offset, stop)
    return stop if carriage < 0 else carriage
