"""The console in a real browser, on a server that does what the test says (`fake_server.py`)."""

from __future__ import annotations

import asyncio
import random
import re
import time

import pytest
from playwright.async_api import Locator, Page, expect

from browser.conftest import OpenPage
from browser.fake_server import Execution, FakeServer, play

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


def link(server: FakeServer, execution: Execution) -> str:
    return f"{server.url}/#/executions/{execution.graph['id']}/{execution.id}"


def numbers_to(last: int) -> list[str]:
    return [str(number) for number in range(1, last + 1)]


def note(page: Page, words: str) -> Locator:
    """A line of the tape that says what is missing."""
    return page.locator(".row-note").filter(has_text=words)


async def begin(server: FakeServer) -> Execution:
    """An execution that runs, with its first node done: 5 events."""
    execution = server.add_execution(server.add_graph("alice", inputs={"text": {"type": "string"}}), text="alice.txt")
    await server.graph_event(execution, "QUEUED")
    await server.graph_event(execution, "RUNNING")
    await server.node_event(execution, "n-in", "RUNNING")
    await server.output(execution, "n-in", "result", "alice.txt")
    await server.node_event(execution, "n-in", "COMPLETED")
    return execution


# --- the first page ---------------------------------------------------------------------------------------------------


async def test_lists_executions_and_graphs(server: FakeServer, open_page: OpenPage) -> None:
    alice = server.add_graph("alice", description="Reads chapters.")
    server.add_graph("hello")
    done = server.add_execution(alice)
    await play(server, done, pace=0)
    failed = server.add_execution(alice)
    await server.graph_event(failed, "RUNNING")
    await server.graph_event(failed, "FAILED", "block_error")
    watched = await open_page(server.url)
    page = watched.page
    await expect(page.get_by_role("row")).to_have_count(3)
    newest = page.get_by_role("row").nth(1)
    await expect(newest).to_contain_text("Failed")
    await expect(newest.locator("svg")).to_have_count(1)  # by icon and by text
    await expect(page.get_by_role("row").nth(2)).to_contain_text("Completed")
    await expect(page.get_by_role("button", name="Run hello")).to_be_visible()
    await expect(page.locator("#connection")).to_contain_text("Live")
    await page.get_by_role("link", name="alice").last.click()
    await expect(page.locator(".execution .status.big")).to_have_text("Completed")
    assert done.id in page.url


async def test_empty_state_says_what_to_type(server: FakeServer, open_page: OpenPage) -> None:
    watched = await open_page(server.url)
    await expect(watched.page.get_by_text("livetape run GRAPH --watch")).to_be_visible()
    await expect(watched.page.get_by_text("livetape graphs import FILE")).to_be_visible()


async def test_list_follows_the_socket(server: FakeServer, open_page: OpenPage) -> None:
    alice = server.add_graph("alice")
    watched = await open_page(server.url)
    page = watched.page
    await expect(page.locator("#connection")).to_contain_text("Live")
    execution = server.add_execution(alice)
    await server.graph_event(execution, "QUEUED")
    row = page.locator(f'tr[data-execution="{execution.id}"]')
    await expect(row).to_contain_text("Queued")
    await server.graph_event(execution, "RUNNING")
    await expect(row).to_contain_text("Running")
    await expect(page.locator("#connection")).to_contain_text("Live")
    await server.graph_event(execution, "COMPLETED")
    await expect(row).to_contain_text("Completed")


async def test_list_is_right_again_after_an_outage(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(server.url)
    row = watched.page.locator(f'tr[data-execution="{execution.id}"]')
    await expect(row).to_contain_text("Running")
    await expect(watched.page.locator("#connection")).to_contain_text("Live")
    await server.drop_sockets()
    await server.graph_event(execution, "COMPLETED")  # nobody was told
    await expect(row).to_contain_text("Completed")


async def test_run_form_is_made_from_the_schema(server: FakeServer, open_page: OpenPage) -> None:
    server.add_graph(
        "typed",
        inputs={
            "text": {"type": "string", "title": "Text", "default": "alice.txt", "description": "What to read."},
            "count": {"type": "integer", "title": "Count"},
            "deep": {"type": "boolean", "title": "Deep"},
            "mode": {"enum": ["fast", "slow"], "title": "Mode", "default": "slow"},
            "more": {"type": "object", "title": "More"},
            "any": {"title": "Anything"},
        },
    )
    watched = await open_page(server.url)
    page = watched.page
    await page.get_by_role("button", name="Run typed").click()
    form = page.get_by_role("dialog")
    await expect(form.get_by_label("Text")).to_have_value("alice.txt")
    await expect(form.get_by_text("What to read.")).to_be_visible()
    await form.get_by_label("Count").fill("3")
    await form.get_by_label("Deep").check()
    await form.get_by_label("More").fill("{not json")
    await form.get_by_label("Anything").fill("[1, 2]")
    await form.get_by_role("button", name="Run").click()
    await expect(form.get_by_role("alert")).to_contain_text("more:")
    assert server.starts == []
    await form.get_by_label("More").fill('{"a": [1]}')
    await form.get_by_role("button", name="Run").click()
    await expect(page.locator(".execution .status.big")).to_have_text("Queued")
    (start,) = server.starts
    wanted = {"text": "alice.txt", "count": 3, "deep": True, "mode": "slow", "more": {"a": [1]}, "any": [1, 2]}
    assert start["inputs"] == wanted
    assert re.fullmatch(r"[0-9a-f-]{36}", start["key"])


async def test_refused_start_is_explained(server: FakeServer, open_page: OpenPage) -> None:
    graph = server.add_graph("strict", inputs={"text": {"type": "string"}})
    graph["input_schema"]["required"] = []  # the form lets it pass, the server does not

    async def page_says(text: str) -> None:
        await expect(watched.page.get_by_role("dialog").get_by_role("alert")).to_contain_text(text)

    watched = await open_page(server.url)
    watched.allow(r"status of 400")
    await watched.page.get_by_role("button", name="Run strict").click()
    graph["input_schema"]["required"] = ["text"]
    await watched.page.get_by_role("dialog").get_by_role("button", name="Run").click()
    await page_says("Graph validation failed")
    await page_says("text: a value is required")


async def test_lost_answer_starts_once(server: FakeServer, open_page: OpenPage) -> None:
    server.add_graph("alice", inputs={"text": {"type": "string", "default": "a"}})
    watched = await open_page(server.url)
    watched.allow(r"ERR_FAILED|Failed to load")
    page = watched.page
    await page.get_by_role("button", name="Run alice").click()

    async def lose(route: object) -> None:
        await route.fetch()  # type: ignore[attr-defined]  # the server takes it, the answer is lost
        await route.abort()  # type: ignore[attr-defined]

    await page.route("**/execute/**", lose)
    form = page.get_by_role("dialog")
    await form.get_by_role("button", name="Run").click()
    await expect(form.get_by_role("alert")).to_contain_text("does not answer")
    await page.unroute("**/execute/**")
    await form.get_by_role("button", name="Run").click()
    await expect(page.locator(".execution")).to_be_visible()
    first, second = server.starts
    assert first["key"] == second["key"]


# --- one execution ----------------------------------------------------------------------------------------------------


async def test_nodes_turn_completed_live(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    page = watched.page
    work = page.locator('tr[data-node="n-work"]')
    await expect(page.get_by_role("heading", level=1)).to_have_text("alice")
    await expect(page.locator('tr[data-node="n-in"]')).to_contain_text("Completed")
    await expect(page.locator('tr[data-node="n-in"]')).to_contain_text("text")  # the name of the input
    await expect(work).to_contain_text("Not started")
    await expect(work).to_contain_text("Read chapters")  # the name its author gave
    await expect(work).to_contain_text("Text Split")  # the block
    await expect(page.locator("#connection")).to_have_text(re.compile("^Live"))
    await server.node_event(execution, "n-work", "RUNNING")
    await expect(work).to_contain_text("Running")
    for chunk in range(1, 4):
        await server.output(execution, "n-work", "chunk", f"chapter {chunk}")
    execution.nodes["n-out-run-1"] = {
        **execution.nodes["n-in-run-1"], "node_exec_id": "n-out-run-1", "node_id": "n-out", "block_id": "b-output",
        "input_data": {"value": [26687]}, "output_data": {"output": [26687]},
    }  # fmt: skip
    await server.node_event(execution, "n-out", "COMPLETED")
    await expect(page.get_by_role("region", name="Outputs")).to_contain_text("26687")  # before the end
    await expect(work.locator(".pin")).to_have_text(re.compile('chunk.*"chapter 3".*×3'))
    await server.node_event(execution, "n-work", "COMPLETED")
    await expect(work).to_contain_text("Completed")
    execution.outputs["words"] = [26687]
    await server.graph_event(execution, "COMPLETED")
    await expect(page.locator(".execution .status.big")).to_have_text("Completed")
    await expect(page.locator("#connection")).to_contain_text("Tape complete")
    await expect(page.get_by_role("region", name="Outputs")).to_contain_text("26687")
    await expect(page.get_by_role("region", name="Inputs")).to_contain_text("alice.txt")
    await watched.settle(execution.tape.offset)
    assert await watched.numbers() == numbers_to(12)
    assert await page.title() == "completed – alice – livetape"


async def test_each_number_once_over_a_dropped_socket(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    server.overlap = 3  # numbers before the asked position are sent again
    watched = await open_page(link(server, execution))
    page = watched.page
    await watched.settle(5)
    await server.node_event(execution, "n-work", "RUNNING")
    await watched.settle(6)
    await server.drop_sockets()
    await expect(page.locator("#connection")).to_contain_text("Offline")
    for chunk in range(1, 6):
        await server.output(execution, "n-work", "chunk", f"while nobody watched {chunk}")
    await watched.settle(11)
    await expect(page.locator("#connection")).to_contain_text("Live")
    await server.node_event(execution, "n-work", "COMPLETED")
    await server.graph_event(execution, "COMPLETED")
    await expect(page.locator(".execution .status.big")).to_have_text("Completed")
    await watched.settle(13)
    assert await watched.numbers() == numbers_to(13)
    await expect(page.locator('tr[data-node="n-work"] .pin')).to_contain_text("×5")
    asked = [one["since"] for one in server.subscribes if one["method"] == "subscribe_graph_execution"]
    assert asked == ["earliest", {"epoch": execution.tape.epoch, "offset": 6}]


@pytest.mark.parametrize("round_", range(3))
async def test_each_number_once_whatever_drops(server: FakeServer, open_page: OpenPage, round_: int) -> None:
    """Sockets die at random instants of a run, also in the middle of a replay."""
    chance = random.Random(round_)
    execution = await begin(server)
    server.overlap = chance.randrange(4)
    watched = await open_page(link(server, execution))
    running = asyncio.create_task(play(server, execution, pace=0.08, chunks=25))
    while not running.done():
        await asyncio.sleep(chance.uniform(0.05, 0.6))
        await server.drop_sockets(
            chance.choice([1001, 1006, 1011, 1012, 4008, 4009]) if chance.random() < 0.9 else 1000
        )
    await running
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Completed", timeout=20_000)
    last = execution.tape.offset
    await watched.settle(last)
    assert await watched.numbers() == numbers_to(last)
    await expect(watched.page.locator('tr[data-node="n-out"]')).to_contain_text("25")
    await expect(watched.page.locator('tr[data-node="n-work"] .pin')).to_contain_text("×25")


async def test_finished_execution_shows_its_whole_tape(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    await play(server, execution, pace=0)
    watched = await open_page(link(server, execution))
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Completed")
    await expect(watched.page.locator("#connection")).to_contain_text("Tape complete")
    await watched.settle(execution.tape.offset)
    assert await watched.numbers() == numbers_to(execution.tape.offset)
    # The state is counted once, although snapshot and tape both tell of it.
    await expect(watched.page.locator('tr[data-node="n-work"] .pin')).to_contain_text("×12")
    # Over: a lost socket is nobody's business any more.
    await server.drop_sockets()
    await asyncio.sleep(1)
    await expect(watched.page.locator("#connection")).to_contain_text("Tape complete")
    assert not server.sockets


async def test_state_is_the_newest_while_the_tape_still_comes(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    await play(server, execution, pace=0)
    last = execution.tape.offset
    server.hold_replay_after = 3
    watched = await open_page(link(server, execution))
    badge = watched.page.locator("#connection")
    await watched.settle(3)
    await expect(badge).to_contain_text(f"Catching up · {last - 3} to go")
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Completed")  # not "Running" of event 2
    await expect(watched.page.locator('tr[data-node="n-in"]')).to_contain_text("Completed")
    server.let_go.set()
    await watched.settle(last)
    await expect(badge).to_contain_text("Tape complete")
    assert await watched.numbers() == numbers_to(last)


async def test_failure_names_its_reason(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    await watched.settle(5)
    await server.node_event(execution, "n-work", "RUNNING")
    await server.output(execution, "n-work", "error", "no such file: alice.txt")
    await server.node_event(execution, "n-work", "FAILED", reason="block_error")
    await server.graph_event(execution, "FAILED", "block_error")
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Failed")
    await expect(watched.page.locator(".reason")).to_have_text("a block failed")
    await expect(watched.page.locator('tr[data-node="n-work"]')).to_contain_text("no such file: alice.txt")
    await expect(watched.page.get_by_role("alert").filter(has_text="ended: failed")).to_have_count(1)


async def test_hole_is_told_and_the_state_is_still_right(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    await watched.settle(5)
    # Numbers 6 and 7 never come, but what they told stands in the snapshot.
    execution.nodes["n-out-run-1"] = {
        **execution.nodes["n-in-run-1"],
        "node_exec_id": "n-out-run-1",
        "node_id": "n-out",
        "block_id": "b-output",
    }
    await server.node_event(execution, "n-work", "RUNNING", skip=2)
    await expect(note(watched.page, "Events 6–7 are missing here")).to_be_visible()
    await expect(watched.page.locator('tr[data-node="n-out"]')).to_contain_text("Completed")
    await expect(watched.page.locator('tr[data-node="n-work"]')).to_contain_text("Running")


async def test_gap_is_told(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    await watched.settle(5)
    data = {"from": 6, "to": 9, "epoch": execution.tape.epoch}
    await server.push_raw(execution, {"method": "gap", "data": data, "success": None, "error": None})
    await expect(note(watched.page, "Gap: the server cannot give events 6–9")).to_be_visible()
    await server.node_event(execution, "n-work", "RUNNING", skip=4)
    await watched.settle(10)
    await expect(note(watched.page, "missing here")).to_have_count(0)  # said once


async def test_lost_tape_is_told_and_read_again(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    await watched.settle(5)
    server.new_tape(execution)
    await server.drop_sockets()
    await server.node_event(execution, "n-work", "RUNNING")
    await server.output(execution, "n-work", "chunk", "of the new tape")
    await expect(note(watched.page, "could not be continued where it stopped")).to_be_visible()
    await watched.settle(2)
    await expect(watched.page.locator('tr[data-node="n-work"]')).to_contain_text("of the new tape")
    shown = await watched.numbers()
    assert shown[:5] == numbers_to(5)
    assert shown[-2:] == ["1", "2"]
    await server.graph_event(execution, "COMPLETED")
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Completed")


async def test_trimmed_tape_is_told(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    server.forget_history(execution, keep=2)
    watched = await open_page(link(server, execution))
    await expect(note(watched.page, "Events 1–3 are no longer on the tape")).to_be_visible()
    await watched.settle(5)
    assert (await watched.numbers())[1:] == ["4", "5"]
    await expect(watched.page.locator('tr[data-node="n-in"]')).to_contain_text("Completed")


async def test_wholly_trimmed_tape_is_told(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    await server.graph_event(execution, "COMPLETED")
    execution.tape.first = execution.tape.offset + 1
    watched = await open_page(link(server, execution))
    await expect(note(watched.page, "Events 1–6 are no longer on the tape")).to_be_visible()
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Completed")


async def test_stop(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    await watched.page.get_by_role("button", name="Stop").click()
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Terminated")
    await expect(watched.page.locator(".reason")).to_have_text("stopped by a user")
    await expect(watched.page.get_by_role("button", name="Stop", exact=True)).to_have_count(0)
    # and again, with the same inputs
    await watched.page.get_by_role("button", name="Run again").click()
    await expect(watched.page.get_by_role("dialog").get_by_label("text")).to_have_value("alice.txt")
    await watched.page.get_by_role("dialog").get_by_role("button", name="Run").click()
    await expect(watched.page.locator(".execution .status.big")).to_have_text("Queued")
    assert execution.id not in watched.page.url


async def test_unknown_execution(server: FakeServer, open_page: OpenPage) -> None:
    watched = await open_page(f"{server.url}/#/executions/g/e")
    watched.allow("status of 404")
    await expect(watched.page.get_by_role("alert").filter(has_text="no such execution")).to_be_visible()
    await watched.page.get_by_role("link", name="All executions").click()
    await expect(watched.page.get_by_role("heading", name="Executions")).to_be_visible()


async def test_api_that_is_down_is_asked_again(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    server.rest_down = True
    watched = await open_page(link(server, execution))
    watched.allow("status of 503")
    await expect(watched.page.get_by_role("alert").filter(has_text="The store does not answer.")).to_be_visible()
    server.rest_down = False
    await watched.settle(5)
    await expect(watched.page.get_by_role("alert").filter(has_text="The store does not answer.")).to_have_count(0)


RETRY_NOW = """() => new Promise((done) => {
    const look = async () => {
        const button = [...document.querySelectorAll("button")].find((one) => one.textContent.trim() === "Retry now");
        if (!button?.checkVisibility()) return requestAnimationFrame(look);
        await window.letIn();
        done(button.isConnected && button.checkVisibility() && (button.click(), true));
    };
    look();
})"""
"""Clicks in the moment in which the button is there: seen from outside, the pause may be over before the click."""


async def test_offline_says_so_and_can_be_hurried(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    badge = watched.page.locator("#connection")
    await expect(badge).to_contain_text("Live")
    server.close_new_with = 1013
    await server.drop_sockets()
    await expect(badge).to_contain_text(re.compile(r"Offline · retry in \d+ s"))
    await server.node_event(execution, "n-work", "RUNNING")

    def let_in() -> None:
        server.close_new_with = None

    await watched.page.expose_function("letIn", let_in)
    while not await watched.page.evaluate(RETRY_NOW):  # the pause was over, and it came back by itself
        server.close_new_with = 1013
        await server.drop_sockets()
    await expect(badge).to_contain_text("Live")
    await watched.settle(6)


# --- what comes from outside is text ----------------------------------------------------------------------------------

EVIL = '<img src=x onerror="window.__xss=1"><script>window.__xss=1</script>'


async def test_markup_in_data_is_text(server: FakeServer, open_page: OpenPage) -> None:
    graph = server.add_graph(f"graph {EVIL}", description=EVIL)
    graph["nodes"][1]["metadata"]["name"] = f"node {EVIL}"
    execution = server.add_execution(graph, **{EVIL: EVIL})
    await server.graph_event(execution, "RUNNING")
    watched = await open_page(link(server, execution))
    page = watched.page
    await watched.settle(1)
    await server.node_event(execution, "n-work", "RUNNING")
    await server.output(execution, "n-work", EVIL, EVIL)
    await server.node_event(execution, "n-work", "FAILED", reason=EVIL)
    execution.outputs[EVIL] = [EVIL, {EVIL: [EVIL]}]
    await server.graph_event(execution, "FAILED", EVIL)
    await expect(page.locator(".execution .status.big")).to_have_text("Failed")
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"graph {EVIL}")
    await expect(page.locator('tr[data-node="n-work"] .pin .value')).to_contain_text("<img src=x onerror")
    await expect(page.locator(".reason")).to_have_text(EVIL)
    await page.locator('[data-offset="3"]').click()
    await expect(page.locator(".row-json pre")).to_contain_text("<script>window.__xss=1</script>")
    await expect(page.locator("main img, main script, main iframe")).to_have_count(0)
    await server.job_event(EVIL, EVIL, {"say": EVIL})
    await page.goto(f"{server.url}/#/")
    await expect(page.get_by_role("heading", name="Graphs")).to_be_visible()
    await expect(page.locator(".card")).to_contain_text(EVIL)
    await page.goto(f"{server.url}/#/jobs/{'%3Cimg%20src%3Dx%20onerror%3D%22window.__xss%3D1%22%3E'}")
    await expect(page.get_by_role("heading", level=1)).to_have_text('<img src=x onerror="window.__xss=1">')
    await expect(page.locator("main img, main script, main iframe")).to_have_count(0)
    assert await page.evaluate("() => window.__xss") is None


async def test_policy_would_stop_markup(server: FakeServer, open_page: OpenPage) -> None:
    """The second line of defence works: even code of the page cannot turn text into elements."""
    watched = await open_page(server.url)
    watched.allow("TrustedHTML|Trusted Type|Content Security Policy")
    outcome = await watched.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch (error) { return error.name } }"
    )
    assert outcome == "TypeError"
    assert await watched.page.evaluate("() => window.__violations.splice(0).length") == 1


# --- signed in or not -------------------------------------------------------------------------------------------------


async def test_sign_in_with_a_token(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    server.token = "aaa.bbb-_.ccc"
    watched = await open_page(link(server, execution))
    watched.allow("status of 401")
    page = watched.page
    await page.get_by_label("Token").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert").filter(has_text="Authorization header is missing")).to_be_visible()
    await page.get_by_label("Token").fill(server.token)
    await page.get_by_role("button", name="Sign in").click()
    await watched.settle(5)  # REST by Bearer and the socket by subprotocol
    await expect(page.locator("#connection")).to_contain_text("Live")
    assert await page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]
    await page.reload()
    await watched.settle(5)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Token")).to_be_visible()


async def test_token_with_other_characters_goes_by_the_query(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    server.token = "with/slash=="
    watched = await open_page(link(server, execution))
    watched.allow("status of 401")
    await watched.page.get_by_label("Token").fill(server.token)
    await watched.page.get_by_role("button", name="Sign in").click()
    await watched.settle(5)


async def test_refused_socket_is_not_tried_blindly(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    await watched.settle(5)
    server.close_new_with = 4003
    await server.drop_sockets()
    await expect(watched.page.get_by_label("Token")).to_be_visible()
    await expect(watched.page.locator("#connection")).to_be_hidden()


# --- jobs -------------------------------------------------------------------------------------------------------------


async def test_job_tape(server: FakeServer, open_page: OpenPage) -> None:
    await server.job_event("nightly", "task_started", {"files": 3})
    watched = await open_page(f"{server.url}/#/jobs")
    page = watched.page
    await page.get_by_label("Job id").fill("nightly")
    await page.get_by_role("button", name="Watch").click()
    await watched.settle(1)
    await server.job_event("nightly", "task_progress", {"percent": 40})
    await expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("value", "40")
    await server.drop_sockets()
    await server.job_event("nightly", "outline_generated", {"title": "Überblick"})
    await watched.settle(3)
    await server.job_event("nightly", "task_completed", {"ok": True}, final=True)
    await expect(page.locator(".job .status.big")).to_have_text("Completed")
    assert await watched.numbers() == numbers_to(4)
    await expect(page.get_by_role("list")).to_contain_text("Überblick")


async def test_job_that_has_no_event_yet(server: FakeServer, open_page: OpenPage) -> None:
    watched = await open_page(f"{server.url}/#/jobs/later")
    await expect(watched.page.get_by_text("waiting for the first event")).to_be_visible()
    await expect(watched.page.locator("#connection")).to_contain_text("Live")
    await server.job_event("later", "task_progress", {"percent": 1})
    await watched.settle(1)
    assert await watched.numbers() == numbers_to(1)  # and no note: nothing was missed


# --- much, and comfort ------------------------------------------------------------------------------------------------


async def test_memory_and_elements_are_bounded(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    await server.node_event(execution, "n-work", "RUNNING")
    for chunk in range(7_000):
        execution.tape.append(
            "node_output_event",
            {
                "event_type": "node_output_update", "graph_exec_id": execution.id, "node_id": "n-work",
                "node_exec_id": "n-work-run-1", "index": chunk, "name": "chunk", "value": f"line {chunk}",
            },
        )  # fmt: skip
    execution.nodes["n-work-run-1"]["output_data"] = {"chunk": [f"line {chunk}" for chunk in range(7_000)]}
    began = time.monotonic()
    watched = await open_page(link(server, execution))
    await watched.settle(7_006)
    assert time.monotonic() - began < 20
    page = watched.page
    assert await page.locator(".rows li").count() < 80
    # The oldest kept is the first one shown: 5,000 events, and not one element for each.
    await page.locator(".events-view").evaluate("(view) => { view.scrollTop = 0 }")
    await expect(page.get_by_label("Follow")).not_to_be_checked()
    first = int(await page.locator("[data-offset]").first.get_attribute("data-offset") or "0")
    assert 7_006 - 5_100 <= first <= 7_006 - 4_900
    await expect(page.locator('tr[data-node="n-work"] .pin')).to_contain_text("×7,000")


async def test_reading_is_not_disturbed(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    await server.node_event(execution, "n-work", "RUNNING")
    for chunk in range(60):
        await server.output(execution, "n-work", "chunk", chunk)
    watched = await open_page(link(server, execution))
    page = watched.page
    await watched.settle(66)
    view = page.locator(".events-view")
    await view.hover()
    await page.mouse.wheel(0, -5_000)
    await expect(page.get_by_label("Follow")).not_to_be_checked()
    await expect(page.locator('[data-offset="1"]')).to_be_in_viewport()
    for chunk in range(60, 65):
        await server.output(execution, "n-work", "chunk", chunk)
    fresh = page.get_by_role("button", name="5 new")
    await expect(fresh).to_be_visible()
    await expect(page.locator('[data-offset="1"]')).to_be_in_viewport()
    await fresh.click()
    await expect(page.locator('[data-offset="71"]')).to_be_in_viewport()
    await expect(page.get_by_label("Follow")).to_be_checked()


async def test_events_by_keyboard(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    page = watched.page
    await watched.settle(5)
    await page.get_by_role("slider").focus()
    for _ in range(3):  # speed, (no button), the newest row
        await page.keyboard.press("Tab")
        if await page.evaluate("() => document.activeElement.dataset.offset !== undefined"):
            break
    await expect(page.locator('[data-offset="5"]')).to_be_focused()
    await page.keyboard.press("ArrowUp")
    await expect(page.locator('[data-offset="4"]')).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator('[data-offset="4"]')).to_have_attribute("aria-expanded", "true")
    await expect(page.locator(".row-json pre")).to_contain_text('"offset": 4')
    await page.keyboard.press("Enter")
    await expect(page.locator(".row-json")).to_have_count(0)
    await page.keyboard.press("Home")
    await expect(page.locator('[data-offset="1"]')).to_be_focused()


async def test_replay(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    await play(server, execution, pace=0.01)
    last = execution.tape.offset
    watched = await open_page(link(server, execution))
    page = watched.page
    await watched.settle(last)
    slider = page.get_by_role("slider", name="Position on the tape")
    await slider.fill("3")
    await watched.settle(3)
    await expect(page.locator(".execution .status.big")).to_have_text("Running")
    await expect(page.locator('tr[data-node="n-in"]')).to_contain_text("Running")
    await expect(page.locator('tr[data-node="n-work"]')).to_contain_text("Not started")
    await expect(page.get_by_text("Replay: the state after event 3.")).to_be_visible()
    await page.get_by_label("Replay speed").select_option("10")
    await page.get_by_role("button", name="Replay").click()
    await watched.settle(last)
    await expect(page.locator(".execution .status.big")).to_have_text("Completed")
    await expect(page.locator('tr[data-node="n-work"] .pin')).to_contain_text("×12")
    await page.get_by_role("button", name="To the end").click()
    await expect(page.get_by_text("Replay: the state")).to_be_hidden()


async def test_announcements_are_summaries(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(link(server, execution))
    log = watched.page.get_by_role("log")
    await watched.settle(5)
    await server.node_event(execution, "n-work", "RUNNING")
    for chunk in range(12):
        await server.output(execution, "n-work", "chunk", chunk)
    await server.node_event(execution, "n-work", "FAILED", reason="block_error")
    await expect(log).to_have_text("14 events, 1 failure", timeout=9_000)


CONTRAST = """() => {
  const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => channel(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(document.documentElement);
  const of = (name) => light(style.getPropertyValue(name).trim());
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const found = {};
  for (const ground of ["--bg", "--surface", "--sunken"]) {
    for (const ink of [
      "--ink", "--muted", "--accent", "--running", "--completed", "--failed", "--terminated", "--review", "--waiting",
    ]) {
      found[`${ink} on ${ground}`] = ratio(of(ink), of(ground));
    }
  }
  found["--accent-ink on --accent"] = ratio(of("--accent-ink"), of("--accent"));
  found["--note-ink on --note"] = ratio(of("--note-ink"), of("--note"));
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_colours_can_be_read(server: FakeServer, open_page: OpenPage, scheme: str) -> None:
    watched = await open_page(server.url, color_scheme=scheme)
    ratios: dict[str, float] = await watched.page.evaluate(CONTRAST)
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


async def test_narrow_screen_and_no_motion(server: FakeServer, open_page: OpenPage) -> None:
    execution = await begin(server)
    watched = await open_page(
        link(server, execution), viewport={"width": 360, "height": 700}, reduced_motion="reduce", color_scheme="dark"
    )
    await watched.settle(5)
    wide = await watched.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    moving = await watched.page.evaluate("() => document.getAnimations().length")
    assert moving == 0
