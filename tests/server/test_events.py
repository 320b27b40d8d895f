"""What became of suggestions: inferred from edits, told by clients, written without any text."""

import json
from pathlib import Path

import pytest

from keyturn.server import cli
from keyturn.server.documents import Edit
from keyturn.server.events import Events, log_path, older
from keyturn.server.stats import figures, report
from tests.server.test_app import URI, scenario, span


class Session:
    """Events of one document, whose clock stands still until it is told."""

    def __init__(self, folder, is_on=True):
        self.now = 1000.0
        self.path = folder / "events.jsonl"
        self.events = Events(lambda: is_on, lambda: self.path, lambda: self.now)

    def suggest(self, offset, text, **more):
        more = {"language": "python", "invoked": False, **more}
        return self.events.suggested("u", offset, text, **more)

    def edit(self, *edits):
        self.events.edited("u", [Edit(*edit) for edit in edits])

    def lines(self):
        self.events.close()
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def ended(self):
        return [line for line in self.lines() if line["event"] == "suggestion"]

    def kept(self):
        found = [line for line in self.lines() if line["event"] == "persistence"]
        return [(line["after_s"], line["share"]) for line in found]


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path)


def said(line):
    names = ("outcome", "num_typed", "num_accepted", "keys_saved", "first_word_wrong")
    return tuple(line[name] for name in names)


def test_nothing_is_written_while_it_is_off(tmp_path) -> None:
    session = Session(tmp_path, is_on=False)
    name = session.suggest(0, "abc")
    session.edit((0, 0, "abc"))
    session.events.accepted(name)
    assert name and session.lines() == []


def test_no_text_is_ever_written(session) -> None:
    session.suggest(0, "hunter(two)\n  x")
    session.edit((0, 0, "hunter(two)\n  x"))
    session.now += 400
    session.lines()
    assert not {"hunter", "two"} & {*session.path.read_text().replace('"', " ").split()}
    assert session.path.stat().st_mode & 0o777 == 0o600


def test_accepted_by_the_clients_word(session) -> None:
    name = session.suggest(4, "done()\nmore", invoked=True, num_candidates=2)
    session.events.shown(name)
    session.edit((4, 4, "done()\nmore"))
    session.events.accepted(name)
    (line,) = session.ended()
    assert said(line) == ("accepted", 0, 11, 10, False)
    assert (line["trigger"], line["kind"], line["language"]) == ("invoked", "block", "python")
    assert (line["num_chars"], line["num_candidates"], line["shown"]) == (11, 2, True)


def test_accepted_before_the_edit_comes(session) -> None:
    session.events.accepted(session.suggest(4, "done()"))
    session.edit((4, 4, "done()"))
    assert said(session.ended()[0]) == ("accepted", 0, 6, 5, False)


def test_accepted_though_the_editor_changed_its_white_space(session) -> None:
    name = session.suggest(4, "a\n  b")
    session.edit((4, 4, "a\n    b"))
    session.events.accepted(name)
    assert session.ended()[0]["outcome"] == "accepted"


def test_acceptance_is_inferred_from_one_edit_with_all_that_is_left(session) -> None:
    session.suggest(4, "done()")
    session.edit((4, 4, "d"))
    session.edit((5, 5, "one()"))
    assert said(session.ended()[0]) == ("accepted", 1, 5, 4, False)


def test_a_menu_entry_that_replaces_the_word_before_the_cursor(session) -> None:
    session.suggest(7, "urn x")
    session.edit((4, 7, "return x"))
    assert said(session.ended()[0]) == ("accepted", 0, 5, 4, False)


def test_what_the_selected_entry_would_insert_is_not_ours(session) -> None:
    session.suggest(2, "append(1)", num_typed=3)
    session.edit((2, 5, "append(1)"))
    assert said(session.ended()[0]) == ("accepted", 0, 6, 5, False)


def test_typed_through_keeps_its_id(session) -> None:
    name = session.suggest(0, "abc")
    for at, char in enumerate("abc"):
        session.edit((at, at, char))
        if at < 2:
            assert session.suggest(at + 1, "abc"[at + 1 :]) == name
    assert [said(line) for line in session.ended()] == [("typed", 3, 0, 0, False)]


def test_partly_accepted_counts_from_what_was_shown_last(session) -> None:
    name = session.suggest(0, "one two three")
    session.edit((0, 0, "one"))
    session.events.partly_accepted(name, 3)
    assert session.suggest(3, " two three") == name
    session.edit((3, 3, " two"))
    session.events.partly_accepted(name, 4)
    session.edit((7, 7, "x"))
    assert said(session.ended()[0]) == ("partly", 0, 7, 5, False)


def test_word_by_word_to_the_end_is_accepted(session) -> None:
    name = session.suggest(0, "one two")
    session.edit((0, 0, "one"))
    session.events.partly_accepted(name, 3)
    session.edit((3, 3, " two"))
    session.events.partly_accepted(name, 7)
    assert said(session.ended()[0]) == ("accepted", 0, 7, 5, False)


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [("x", True), ("retry", True), ("return y", False), ("return(", False), ("\b", None)],
)
def test_something_else_is_typed(session, typed, wrong) -> None:
    session.suggest(4, "return x")
    session.edit((3, 4, "") if typed == "\b" else (4, 4, typed))
    (line,) = session.ended()
    assert (line["outcome"], line["first_word_wrong"]) == ("dismissed", wrong)


def test_backspace_within_a_suggestion_does_not_end_it(session) -> None:
    session.suggest(4, "return x")
    session.edit((4, 4, "ret"))
    session.edit((6, 7, ""))
    session.edit((6, 6, "turn x"))
    assert session.ended()[0]["outcome"] == "accepted"


def test_edits_before_the_place_move_it(session) -> None:
    session.suggest(10, "abc")
    session.edit((0, 0, "import x\n"), (19, 19, "abc"))
    assert session.ended()[0]["outcome"] == "accepted"


def test_another_suggestion_at_the_same_place_replaces_it(session) -> None:
    session.suggest(4, "abc")
    session.suggest(4, "xyz")
    session.suggest(0, "else")
    assert [line["outcome"] for line in session.ended()] == ["replaced", "dismissed", "dismissed"]


def test_a_client_that_never_says_shown_is_not_taken_to_hide(session) -> None:
    session.suggest(4, "abc")
    session.suggest(0, "abc")
    name = session.suggest(9, "abc")
    session.events.shown(name)
    assert [line["shown"] for line in session.ended()] == [None, None, True]


# Whether accepted text is still there.


def accept(session, offset, text):
    session.suggest(offset, text)
    session.edit((offset, offset, text))


@pytest.mark.parametrize(
    ("edits", "share"),
    [
        ([(0, 0, "before ")], 1.0),
        ([(20, 20, "behind")], 1.0),
        ([(10, 15, "")], 0.5),
        ([(12, 12, "x")], 1.0),
        ([(10, 20, "????")], 0.0),
        ([(5, 15, "")], 0.5),
        ([(15, 25, "")], 0.5),
        ([(0, 30, "all\n  abcdefghij formatted")], 1.0),
        ([(0, 30, "????"), (0, 1, "")], 0.0),
    ],
)
def test_share_of_accepted_text_that_is_still_there(session, edits, share) -> None:
    accept(session, 10, "abcdefghij")
    session.now += 10
    for edit in edits:
        session.edit(edit)
    session.now += 30
    session.edit((0, 0, "x"))
    session.now += 300
    assert session.kept() == [(30, share), (300, share)]


def test_what_changed_after_the_moment_is_not_held_against_it(session) -> None:
    accept(session, 0, "abcd")
    session.now += 31
    session.edit((0, 4, ""))
    session.now += 300
    assert session.kept() == [(30, 1.0), (300, 0.0)]


def test_closed_before_the_moment_says_nothing(session) -> None:
    accept(session, 0, "abcd")
    session.now += 31
    assert session.kept() == [(30, 1.0)]


def test_a_text_replaced_as_a_whole_is_not_followed(session) -> None:
    accept(session, 0, "abcd")
    session.now += 1
    session.events.edited("u", None)
    session.now += 400
    assert session.kept() == []


def test_only_so_many_accepted_texts_are_followed(session) -> None:
    for _ in range(200):
        accept(session, 0, "abcd")
    session.now += 31
    assert len(session.kept()) == 64


def test_a_full_log_makes_room_once(session) -> None:
    session.path.write_text('{"event": "x"}\n' * 300_000)
    session.suggest(0, "abc")
    session.suggest(9, "abc")
    assert len(session.lines()) == 2
    assert older(session.path).stat().st_size > 4_000_000


# A session over the language server, and the rates of it.


def test_rates_of_a_scripted_session(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    @scenario()
    async def run(client):
        await play(client)
        await client.server.close()

    run()
    found = figures(log_path())
    assert found["num_suggestions"] == found["all"]["suggestions"] == 4
    assert found["all"]["acceptance"] == 0.5
    assert found["all"]["first_word_wrong"] == 0.25
    assert found["trigger"]["invoked"]["acceptance"] == 0.5
    assert found["kind"].keys() == {"line"}
    assert found["keys_saved"] == 5 + 3
    assert "python" in report(found)
    assert cli.main(["stats", "--json"]) == 0


def test_stats_of_an_empty_log_say_how_to_switch_it_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(["stats"]) == 0
    assert '"event_log": true' in capsys.readouterr().out


def test_rates_by_group_and_persistence_with_broken_lines(tmp_path) -> None:
    path = tmp_path / "events.jsonl"

    def line(outcome, language, shown=True, **more):
        one = {"event": "suggestion", "language": language, "trigger": "invoked", "kind": "line"}
        return json.dumps({**one, "outcome": outcome, "shown": shown, "keys_saved": 1, **more})

    persistence = {"event": "persistence", "language": "go", "trigger": "invoked", "kind": "line"}
    older(path).write_text(line("accepted", "go") + "\n")
    path.write_text(
        "\n".join(
            [
                line("dismissed", "go", first_word_wrong=True),
                line("dismissed", "python", shown=None),
                line("dismissed", "python", shown=False),
                line("replaced", "python"),
                json.dumps({**persistence, "after_s": 30, "share": 0.5}),
                json.dumps({**persistence, "after_s": 30, "share": 1.0}),
                "3",
                '{"event": "sugg',
            ]
        )
    )
    found = figures(path)
    assert found["num_suggestions"] == 3
    assert found["language"]["go"] == {
        "suggestions": 2,
        "acceptance": 0.5,
        "first_word_wrong": 0.5,
        "persistence_30_s": 0.75,
        "persistence_300_s": None,
    }
    assert found["language"]["python"]["suggestions"] == 1


async def play(client):
    """Accept one suggestion, half of one; write over one; go away from one."""
    await client.initialize(options={"event_log": True})
    client.open("x = \ny = \nz = \n\n")

    async def ask(line):
        (item,) = (await client.reply(client.ask(line, 4 * (line < 3))))["result"]
        client.notify("textDocument/didShowCompletion", {"item": item})
        return item

    item = await ask(0)
    client.change(2, {"range": span(0, 4, 4), "text": "done()"})
    await client.request("workspace/executeCommand", item["command"])
    item = await ask(1)
    client.change(3, {"range": span(1, 4, 4), "text": "done"})
    params = {"item": item, "acceptedLength": 4}
    client.notify("textDocument/didPartiallyAcceptCompletion", params)
    await ask(2)
    client.change(4, {"range": span(2, 4, 4), "text": "1"})
    await ask(3)
    client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})


@pytest.mark.parametrize(
    "params",
    [None, {}, {"item": 3}, {"item": {"command": {"arguments": []}}}, {"item": {"command": None}}],
)
def test_unreadable_notifications_change_nothing(params) -> None:
    @scenario()
    async def run(client):
        await client.initialize()
        client.notify("textDocument/didShowCompletion", params)
        client.notify("textDocument/didPartiallyAcceptCompletion", params)
        command = {"command": "keyturn.didAcceptCompletion"}
        assert "error" not in await client.request("workspace/executeCommand", command)
        client.open("x = \n")
        assert (await client.reply(client.ask(0, 4)))["result"]

    run()


def test_the_log_lies_where_programs_keep_what_is_to_last(tmp_path, monkeypatch) -> None:
    name = Path("keyturn", "events.jsonl")
    assert log_path({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / name
    monkeypatch.setenv("HOME", str(tmp_path))
    for environ in ({}, {"XDG_STATE_HOME": "relative"}):
        assert log_path(environ) == tmp_path / ".local" / "state" / name


def test_the_folder_of_the_log_is_made_for_its_user_alone(tmp_path) -> None:
    session = Session(tmp_path / "state" / "keyturn")
    session.suggest(0, "abc")
    session.suggest(9, "abc")
    assert session.path.parent.stat().st_mode & 0o777 == 0o700
    assert len(session.lines()) == 2
