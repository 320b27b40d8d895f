"""Made-up credentials of every kind, put together at run time: no scanner trips over this file."""

from __future__ import annotations

import base64
import random
import re
import string

_ALNUM = string.ascii_letters + string.digits
_LETTERS = {
    "A": _ALNUM,
    "B": _ALNUM + "+/",
    "D": "123456789",
    "H": "0123456789abcdef",
    "L": string.ascii_lowercase + string.digits,
    "P": _ALNUM + "!$%&",
    "U": string.ascii_uppercase + string.digits,
}
# Of each kind: code with "@" where the secret stands, and the secret's form: {B40} is 40 letters of
# base64 for instance (see _LETTERS), {J40} is JSON in base64, "|" only parts what is no secret.
KINDS: dict[str, tuple[str, str]] = {
    "AWS key id": ('key_id = "@"', "AK|IA{U16}"),
    "AWS secret key": ("aws_secret_access_key = '@'", "{B40}"),
    "Artifactory": ('auth("@")', "AK|C{A24}"),
    "Azure storage": ('s = "AccountName=a;AccountKey=@;"', "{B86}=="),
    "basic authentication": ('url = "https://bob:@" + "@example.org/x"', "{A14}"),
    "Discord": ('run("@")', "M{A23}.{A6}.{A27}"),
    "GitHub": ('git("@")', "gh|p_{A36}"),
    "GitHub, fine-grained": ('git("@")', "github|_pat_{A82}"),
    "GitLab": ('lab = Lab("@")', "gl|pat-{A20}"),
    "IBM": ('ibm_cloud_iam_key = "@"', "{A44}"),
    "JSON web token": ('headers = {"Authorization": "Bearer @"}', "{J20}.{J40}.{A43}"),
    "Mailchimp": ('mail("@")', "{H32}|-us12"),
    "npm": ('line = "//registry.example.org/:_authToken=@"', "np|m_{A36}"),
    "OpenAI": ('client = Client("@")', "s|k-{A20}T3Bl|bkFJ{A20}"),
    "Anthropic": ('client = Client("@")', "s|k-ant-api03-{A90}"),
    "Hugging Face": ('login("@")', "h|f_{A34}"),
    "PyPI": ('upload("@")', "pypi-|AgEIcHlwaS5vcmc{A80}"),
    "SendGrid": ('send("@")', "S|G.{A22}.{A43}"),
    "Slack": ('slack("@")', "xox|b-{D11}-{L24}"),
    "Slack hook": ('post("https://hooks.slack.com/services/@")', "T{A8}/B{A8}/{A24}"),
    "SoftLayer": ('get("https://api.softlayer.com/soap/v3/@")', "{H64}"),
    "Square": ('square("@")', "sq0|csp-{A43}"),
    "Stripe": ('stripe.api = "@"', "s|k_live_{A24}"),
    "Telegram": ('bot = Bot("@")', "{D9}:{A35}"),
    "Twilio": ('account = "@"', "A|C{H32}"),
    "Google": ('maps = Maps("@")', "AI|za{A35}"),
    "password": ('    "password": "@",', "{P10}"),
    "password, typed": ('db_password: str = "@"', "{A9}"),
    "password compared": ('if "@" == password:', "{A9}"),
    "key in the environment": ('os.environ["API_KEY"] = "@"', "{A20}"),
    "client secret": ("const clientSecret = '@';", "{H32}"),
    "private key": (
        'KEY = """\n-----BEGIN RSA PRIV|ATE KEY-----\n@\n-----END RSA PRIV|ATE KEY-----\n"""',
        "{B64}\n{B64}\n{B64}\n{B64}\n{B26}==",
    ),
    "private key on a line": (
        'key = "-----BEGIN PRIV|ATE KEY-----\\n@\\n-----END PRIV|ATE KEY-----\\n"',
        "{B64}\\n{B64}\\n{B64}",
    ),
}


def planted(kind: str, rng: random.Random) -> tuple[str, str, list[str]]:
    """Return code with a secret in it, the secret, and its parts without line ends."""
    line, form = (part.replace("|", "") for part in KINDS[kind])
    secret = re.sub(r"\{(.)(\d+)\}", lambda made: _some(rng, made[1], int(made[2])), form)
    line = line.replace('@" + "@', "@@")
    return line.replace("@", secret, 1), secret, secret.replace("\\n", "\n").split("\n")


def _some(rng: random.Random, kind: str, count: int) -> str:
    """Return `count` characters, among them a digit, and a letter where there are any."""
    if kind == "J":
        made = '{"sub":"' + _some(rng, "A", count) + '"}'
        return base64.urlsafe_b64encode(made.encode()).decode().rstrip("=")
    letters = _LETTERS[kind]
    made = rng.choices(letters, k=count)
    made[rng.randrange(count // 2)] = rng.choice([c for c in letters if c.isalpha()] or ["7"])
    made[count // 2 + rng.randrange(count // 2)] = rng.choice("123456789")
    return "".join(made)
