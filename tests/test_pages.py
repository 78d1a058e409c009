"""The pages without a browser: what templates may use, what fragments say, what they never contain."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from jinja2 import nodes

from app.errors import InvalidRequest
from app.services.params import MAX_SEED
from app.web import page_builders, page_contexts, pages
from app.web.page_forms import parse_form, read_params
from tests.conftest import client_of
from tests.fakes import FakeBackend
from tests.servers import eventually, parse_events

HTML = {"Accept": "text/html"}
HTMX = {"HX-Request": "true", "HX-Source": "form#prompt-form", "Accept": "text/html"}
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "x hx-on:click=alert(1)",
    '"><script>alert(1)</script>',
    "{{70001*70001}} {% raw %}",
    "</hx-partial><hx-partial hx-target=body>",
    "a ‮ bidi and a ​ zero width 🦊",
)


async def created(client: httpx.AsyncClient, prompt: str, **fields: str) -> str:
    """Send the form as htmx does; the id of the batch."""
    answer = await client.post("/generations", data={"prompt": prompt, **fields}, headers=HTMX)
    assert answer.status_code == 200, answer.text
    return answer.headers["hx-push-url"].removeprefix("/studio/")


async def finished(app: FastAPI) -> None:
    """Wait until nothing is being made any more."""
    await eventually(lambda: app.state.services.generations.unfinished == 0)


# ---------------------------------------------------------------------- templates and their contexts


def _fields(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


class _Names:
    """Walks templates and holds every `widget.field` against the declared dataclasses."""

    def __init__(self) -> None:
        self.used: set[tuple[type, str]] = set()
        self.wrong: list[str] = []

    def template(self, name: str, scope: dict[str, Any]) -> None:
        env = pages.environment()
        source, _, _ = env.loader.get_source(env, name)  # type: ignore[union-attr]
        tree = env.parse(source)
        for node in tree.find_all(nodes.Extends):
            self.template(_constant(node.template), scope)
        self.walk(tree.body, {**scope}, name)

    def walk(self, body: list[nodes.Node], scope: dict[str, Any], name: str) -> None:
        for node in body:
            self.visit(node, scope, name)

    def visit(self, node: nodes.Node, scope: dict[str, Any], name: str) -> None:
        if isinstance(node, nodes.Include):
            self.template(_constant(node.template), scope)
        elif isinstance(node, nodes.Import):
            scope[node.target] = None
        elif isinstance(node, nodes.FromImport):
            self.template(_constant(node.template), scope)
            scope.update(dict.fromkeys(node.names, None))
        elif isinstance(node, nodes.For):
            kind = self.kind(node.iter, scope, name)
            self.visit(node.iter, scope, name)
            self.walk(node.body, {**scope, **_targets(node.target, _element(kind))}, name)
        elif isinstance(node, nodes.With):
            inner = {**scope}
            for target, value in zip(node.targets, node.values, strict=True):
                self.visit(value, scope, name)
                inner.update(_targets(target, self.kind(value, scope, name)))
            self.walk(node.body, inner, name)
        elif isinstance(node, nodes.Assign):
            self.visit(node.node, scope, name)
            scope.update(_targets(node.target, None))
        elif isinstance(node, nodes.Macro):
            self.walk(node.body, {**scope, **{a.name: None for a in node.args}, "caller": None}, name)
            scope[node.name] = None
        elif isinstance(node, nodes.Getattr):
            self.kind(node, scope, name)
        elif isinstance(node, nodes.Name):
            if node.name not in scope:
                self.wrong.append(f"{name}: {node.name} is not declared")
            elif scope.get("") is not None and node.name in _fields(scope[""]):
                self.used.add((scope[""], node.name))
        else:
            self.walk(list(node.iter_child_nodes()), scope, name)

    def kind(self, node: nodes.Node, scope: dict[str, Any], name: str) -> Any:
        """The declared type of an expression, or None where it is no declared thing."""
        if isinstance(node, nodes.Name):
            self.visit(node, scope, name)
            return scope.get(node.name)
        if isinstance(node, nodes.CondExpr):
            return self.kind(node.expr1, scope, name)
        if not isinstance(node, nodes.Getattr):
            self.walk(list(node.iter_child_nodes()), scope, name)
            return None
        owner = _plain(self.kind(node.node, scope, name))
        if not dataclasses.is_dataclass(owner):
            return None
        if node.attr not in _fields(owner):
            self.wrong.append(f"{name}: {owner.__name__} has no {node.attr}")
            return None
        self.used.add((owner, node.attr))
        return _fields(owner)[node.attr]


def _constant(node: nodes.Node) -> str:
    assert isinstance(node, nodes.Const)
    return str(node.value)


def _plain(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _element(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _targets(target: nodes.Node, kind: Any) -> dict[str, Any]:
    if isinstance(target, nodes.Name):
        return {target.name: kind}
    return {name.name: None for name in target.find_all(nodes.Name)}


def test_templates_use_exactly_what_the_contexts_declare() -> None:
    """A failure means a template shows a name that nobody fills, or a field that nobody shows."""
    names = _Names()
    declared: set[tuple[type, str]] = set()
    for context, template in pages.TEMPLATES.items():
        names.template(template, {**_fields(context), "": context, "asset": None, "loop": None})
    for kind in vars(page_contexts).values():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            declared |= {(kind, field.name) for field in dataclasses.fields(kind)}
    assert names.wrong == []
    silent = {(page_contexts.StatusPanel, "state")}
    unused = {f"{kind.__name__}.{name}" for kind, name in declared - names.used - silent}
    assert unused == set()


def test_every_field_of_a_context_has_a_help_text() -> None:
    """A failure means that a designer would have to read the code to know what a field means."""
    for kind in vars(page_contexts).values():
        if dataclasses.is_dataclass(kind):
            assert all(field.metadata.get("help") for field in dataclasses.fields(kind)), kind


# ---------------------------------------------------------------------- markup


class _Markup(HTMLParser):
    """Collects elements; void elements need no end."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))


def parsed(html: str) -> list[tuple[str, dict[str, str]]]:
    """All elements of a page or fragment with their attributes."""
    parser = _Markup()
    parser.feed(html)
    return parser.elements


def check_markup(html: str) -> None:
    """What a strict policy and accessible pages need of every piece of markup."""
    elements = parsed(html)
    for tag, attributes in elements:
        for name, value in attributes.items():
            assert name != "style" and not name.startswith("on"), (tag, attributes)
            assert not name.startswith("hx-on") and not value.strip().startswith(("js:", "javascript:"))
            if name == "hx-trigger":
                assert "[" not in value, "a trigger filter needs eval"
        if tag == "script":
            assert attributes.get("src", "").startswith("/static/vendor/")
        if tag == "img":
            assert attributes.get("alt") and attributes.get("width") and attributes.get("height")
        if tag == "input" and attributes.get("type") != "hidden":
            assert "id" in attributes
    assert elements.count(("style", {})) == 0
    ids = [attributes["id"] for _, attributes in elements if attributes.get("id")]
    assert len(ids) == len(set(ids)), "an id twice"
    for tag, attributes in elements:
        if tag == "label" and "for" in attributes:
            assert attributes["for"] in ids
        if "aria-describedby" in attributes:
            assert attributes["aria-describedby"] in ids


@pytest.mark.parametrize("prompt", HOSTILE)
async def test_prompts_are_text_and_never_markup(
    client: httpx.AsyncClient, app: FastAPI, prompt: str
) -> None:
    """A failure means that a prompt can run a script, or a template, in somebody's page."""
    batch = await created(client, prompt, negative_prompt=prompt)
    await finished(app)
    texts = [
        (await client.post("/generations", data={"prompt": prompt, "steps": "0"}, headers=HTMX)).text,
        (await client.get(f"/studio/{batch}", headers=HTML)).text,
        (await client.get("/", params={"prompt": prompt}, headers=HTML)).text,
        (await client.get(f"/studio/batches/{batch}/events")).text,
        (await client.get("/", headers=HTML)).text,
    ]
    for text in texts:
        check_markup(re.sub(r"^(id|data|event): ?|^:.*$", "", text, flags=re.M))
        assert "4900140001" not in text  # 70001 squared, larger than any seed
        if "<" in prompt:
            assert prompt not in text
        assert not any(tag == "img" and attributes.get("src") == "x" for tag, attributes in parsed(text))
    assert 'value="' + prompt.replace("&", "&amp;").split("<")[0].split('"')[0] in texts[1]


async def test_pages_of_all_kinds_keep_to_the_policy(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A failure means inline script or style, a duplicate id, or a label that labels nothing."""
    batch = await created(client, "an apple", n="3")
    await finished(app)
    failed = await created(client, "please fail")
    await finished(app)
    for path in ("/", f"/studio/{batch}", f"/studio/{failed}", "/models", "/nowhere", "/studio/nowhere"):
        answer = await client.get(path, headers=HTML)
        assert answer.headers["content-type"].startswith("text/html"), path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        check_markup(answer.text)


async def test_static_files_are_addressed_by_their_content(client: httpx.AsyncClient) -> None:
    """A failure means that a browser may keep an old style sheet beside a new page, or ask every time."""
    page = (await client.get("/", headers=HTML)).text
    addresses = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
    assert len(addresses) == 4
    for address in addresses:
        answer = await client.get(address)
        assert answer.status_code == 200, address
        assert "immutable" in answer.headers["cache-control"]


# ---------------------------------------------------------------------- the Studio


async def test_the_empty_page_offers_everything(client: httpx.AsyncClient) -> None:
    """A failure means that a control of the form, an example or the note on the model is missing."""
    page = (await client.get("/", headers=HTML)).text
    names = {a.get("name") for tag, a in parsed(page) if tag in ("input", "select", "button")}
    fields = {
        "prompt",
        "negative_prompt",
        "model",
        "steps",
        "guidance_scale",
        "seed",
        "size",
        "scheduler",
        "n",
    }
    assert fields | {"example"} <= names
    assert "is a demonstration model" in page
    assert 'href="/models#larger"' in page


async def test_the_answer_to_a_form_puts_the_pictures_on_the_stage(client: httpx.AsyncClient) -> None:
    """A failure means that the page would not show what was just asked for, or not under its own address."""
    answer = await client.post("/generations", data={"prompt": "an apple", "n": "4"}, headers=HTMX)
    targets = re.findall(r'<hx-partial hx-target="([^"]+)"', answer.text)
    assert targets[:2] == ["#prompt-form", "#stage"]
    batch = answer.headers["hx-push-url"].removeprefix("/studio/")
    assert f'hx-sse:connect="/studio/batches/{batch}/events"' in answer.text
    assert answer.text.count('<article class="picture"') == 4


async def test_an_example_fills_the_form_and_develops(client: httpx.AsyncClient) -> None:
    """A failure means that an example button sends what stands in the box instead of its own words."""
    answer = await client.post(
        "/generations", data={"prompt": "something else", "example": "a red apple"}, headers=HTMX
    )
    assert "<h2>a red apple</h2>" in answer.text
    assert 'name="prompt" type="text" value="a red apple"' in answer.text


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"prompt": "   "}, "prompt", "not only blanks"),
        ({"prompt": "x" * 2001}, "prompt", "At most 2,000"),
        ({"prompt": "x", "steps": "151"}, "steps", "from 1 to 150"),
        ({"prompt": "x", "steps": "7.5"}, "steps", "whole number"),
        ({"prompt": "x", "seed": "-1"}, "seed", "whole number"),
        ({"prompt": "x", "seed": str(2**63)}, "seed", "whole number"),
        ({"prompt": "x", "guidance_scale": "nan"}, "guidance_scale", "from 0 to 30"),
        ({"prompt": "x", "size": "7x7"}, "size", "Must"),
        ({"prompt": "x", "n": "9"}, "n", "from 1 to 8"),
        ({"prompt": "x", "scheduler": "magic"}, "scheduler", "known schedulers"),
    ],
)
async def test_what_is_wrong_is_said_beside_its_field(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, str], place: str, words: str
) -> None:
    """A failure means a wrong form without an answer that helps, or one that started something."""
    answer = await client.post("/generations", data=fields, headers=HTMX)
    assert answer.status_code == 400
    found = re.search(rf'id="{place}-error"[^>]*>([^<]*)<', answer.text)
    assert found is not None and words in found[1]
    assert f'id="{place}"' in answer.text and 'aria-invalid="true"' in answer.text
    if place not in ("prompt", "model"):
        assert re.search(r'<details class="advanced" id="advanced" open>', answer.text)
    assert backend.requests == []


@pytest.mark.parametrize(
    "body",
    [b"prompt=x&unknown=1", b"prompt=%ff", b"&".join(b"a%d=1" % i for i in range(100)), b"prompt=a%00b"],
)
async def test_broken_forms_are_refused(client: httpx.AsyncClient, backend: FakeBackend, body: bytes) -> None:
    """A failure means that bytes that are no form of ours reach the engine, or end in a 5xx."""
    headers = {**HTMX, "Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.post("/generations", content=body, headers=headers)
    assert answer.status_code == 400
    assert backend.requests == []


async def test_a_wrong_form_keeps_what_was_typed_without_a_script(client: httpx.AsyncClient) -> None:
    """A failure means that a browser without scripts loses the prompt to a mistake elsewhere."""
    answer = await client.post("/generations", data={"prompt": "an apple", "steps": "0"}, headers=HTML)
    assert answer.status_code == 400
    assert 'value="an apple"' in answer.text and "<html" in answer.text


async def test_everything_works_without_a_script(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend
) -> None:
    """A failure means that making, cancelling or voting needs JavaScript."""
    answer = await client.post("/generations", data={"prompt": "never"}, headers=HTML)
    assert answer.status_code == 303
    page = (await client.get(answer.headers["location"], headers=HTML)).text
    assert 'http-equiv="refresh"' in page
    batch = answer.headers["location"].removeprefix("/studio/")
    cancelled = await client.post(f"/studio/pictures/{batch}/cancel", headers=HTML)
    assert cancelled.status_code == 303 and cancelled.headers["location"] == f"/studio/{batch}"
    assert 'data-state="cancelled"' in (await client.get(f"/studio/{batch}", headers=HTML)).text
    done = await created(client, "an apple")
    await finished(app)
    voted = await client.post(f"/studio/pictures/{done}/vote", data={"value": "1"}, headers=HTML)
    assert voted.status_code == 303
    page = (await client.get(f"/studio/{done}", headers=HTML)).text
    assert 'value="1" checked' in page and 'http-equiv="refresh"' not in page


async def test_a_vote_is_shown_can_be_changed_and_is_the_voters_own(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    """A failure means that a page shows a vote that is not stored, or somebody else's."""
    batch = await created(client, "an apple")
    await finished(app)
    for value, other in (("1", "-1"), ("-1", "1")):
        answer = await client.post(f"/studio/pictures/{batch}/vote", data={"value": value}, headers=HTMX)
        assert f'value="{value}" checked' in answer.text and f'value="{other}" checked' not in answer.text
        assert f'value="{value}" checked' in (await client.get(f"/studio/{batch}", headers=HTML)).text
    async with client_of(app) as stranger:
        assert "checked" not in (await stranger.get(f"/studio/{batch}", headers=HTML)).text


@pytest.mark.parametrize("value", ["", "2", "yes", "1e0"])
async def test_a_wrong_vote_says_so_where_it_was_cast(
    client: httpx.AsyncClient, app: FastAPI, value: str
) -> None:
    """A failure means that a vote is lost in silence."""
    batch = await created(client, "an apple")
    await finished(app)
    answer = await client.post(f"/studio/pictures/{batch}/vote", data={"value": value}, headers=HTMX)
    assert answer.status_code == 400
    assert 'class="problem"' in answer.text and "hx-partial" not in answer.text


async def test_coming_back_finds_the_running_pictures(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A failure means that a reload loses sight of what is being made, or shows it to somebody else."""
    batch = await created(client, "never")
    assert f"/studio/batches/{batch}/events" in (await client.get("/", headers=HTML)).text
    async with client_of(app) as stranger:
        assert "/events" not in (await stranger.get("/", headers=HTML)).text
    await client.post(f"/studio/pictures/{batch}/cancel", headers=HTMX)
    assert "/events" not in (await client.get("/", headers=HTML)).text


async def test_the_line_shows_the_visitors_own_pictures(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A failure means that finished pictures cannot be found again, or that strangers see them."""
    batch = await created(client, "an apple")
    await finished(app)
    assert f'src="/images/{batch}.png"' in (await client.get("/", headers=HTML)).text
    async with client_of(app) as stranger:
        assert "/images/" not in (await stranger.get("/", headers=HTML)).text


async def test_again_asks_for_the_same_with_a_new_seed(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A failure means that 'again' changes the recipe, or makes the very same picture."""
    batch = await created(client, "an apple", steps="7", seed="11", guidance_scale="2.5", scheduler="euler")
    await finished(app)
    page = (await client.get(f"/studio/{batch}", headers=HTML)).text
    form = re.search(r'<form method="post" action="/generations".*?</form>', page, flags=re.S)
    assert form is not None
    fields = {a["name"]: a["value"] for tag, a in parsed(form[0]) if tag == "input"}
    assert "seed" not in fields
    params, n = read_params(fields)
    assert (params.prompt, params.steps, params.guidance_scale, params.noise_scheduler, n) == (
        "an apple", 7, 2.5, "euler", 1,
    )  # fmt: skip


async def test_a_failed_picture_says_why_and_offers_to_try_again(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    """A failure means that a visitor is left with a dead picture."""
    batch = await created(client, "please fail", seed="5")
    await finished(app)
    page = (await client.get(f"/studio/{batch}", headers=HTML)).text
    assert "The numbers went astray." in page and "Try again" in page
    assert 'name="seed" value="5"' in page


async def test_a_full_queue_tells_when_to_come_back(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend
) -> None:
    """A failure means that a refusal has no words, or lets the form forget the prompt."""
    while (await client.post("/generations", data={"prompt": "never", "n": "8"}, headers=HTMX)).is_success:
        pass
    answer = await client.post("/generations", data={"prompt": "an apple", "n": "8"}, headers=HTMX)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert 'class="problem"' in answer.text and "Wait a moment" in answer.text
    assert 'value="an apple"' in answer.text


async def test_a_loading_model_has_its_own_words(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """A failure means that a visitor takes a start for a fault."""
    backend.set_model("builtin/base", "loading")
    backend.set_model("extra/quick", "waiting")
    page = (await client.get("/", headers=HTML)).text
    assert "Warming up" in page and "reading the weights" in page
    assert '<progress max="100" value="40"' in page and 'hx-get="/studio/status"' in page
    answer = await client.post("/generations", data={"prompt": "an apple"}, headers=HTMX)
    assert "waits for its model" in answer.text
    backend.set_model("builtin/base", "ready")
    backend.set_model("extra/quick", "ready")
    panel = (await client.get("/studio/status", headers=HTMX)).text
    assert "hidden" in panel and "hx-get" not in panel


async def test_a_model_that_failed_is_named_with_its_reason(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """A failure means that a model is missing without a word."""
    backend.set_model("extra/quick", "failed", "The weights are damaged.")
    for path in ("/", "/models"):
        page = (await client.get(path, headers=HTML)).text
        assert "Not every model could be loaded" in page and "The weights are damaged." in page
    answer = await client.post("/generations", data={"prompt": "x", "model": "quick"}, headers=HTMX)
    assert answer.status_code == 503 and "could not be loaded: The weights are damaged." in answer.text


async def test_another_model_brings_its_own_limits(client: httpx.AsyncClient) -> None:
    """A failure means that the form offers what the chosen model cannot do."""
    query = {"prompt": "an apple", "model": "quick", "steps": "140"}
    answer = await client.get("/studio/form", params=query, headers=HTMX)
    assert "1 to 30" in answer.text and 'value="an apple"' in answer.text and 'value="140"' not in answer.text


async def test_an_unknown_address_is_a_page_for_people_and_json_for_programs(
    client: httpx.AsyncClient,
) -> None:
    """A failure means that a mistyped address shows a bare error, or breaks a program."""
    page = await client.get("/studio/nowhere", headers=HTML)
    assert page.status_code == 404 and "Nothing hangs here" in page.text
    assert (await client.get("/nowhere")).json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "path",
    [
        "/studio/%00",
        "/studio/%ed%a0%80",
        "/studio/..%2f..%2fetc",
        "/studio/" + "x" * 5000,
        "/studio/' OR 1=1--",
        "/studio/batches/%00/events",
        "/studio/form?model=nowhere&prompt=%00&seed=%ff",
        "/studio/form?" + "&".join(f"a{i}=1" for i in range(100)),
        "/?prompt=%ff&steps=nan&n=99&model=nowhere",
    ],
)
async def test_strange_addresses_are_no_faults(client: httpx.AsyncClient, path: str) -> None:
    """A failure means that an address that somebody mistyped, or made up, ends in a 5xx."""
    assert (await client.get(path, headers=HTML)).status_code < 500
    if "form" not in path and "?" not in path and "events" not in path:
        for action in ("cancel", "vote"):
            target = f"/studio/pictures/{path.removeprefix('/studio/')}/{action}"
            answer = await client.post(target, data={"value": "1"}, headers=HTMX)
            assert answer.status_code in (400, 404), answer.text


# ---------------------------------------------------------------------- the stream


async def test_the_stream_sends_partials_and_ends_with_done(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A failure means that htmx would not swap a message, or would reconnect for ever."""
    batch = await created(client, "an apple", n="2", steps="6")
    answer = await client.get(f"/studio/batches/{batch}/events")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert "\r" not in answer.text
    *messages, last = parse_events(answer.text)
    assert last.event == "done"
    assert messages and all(message.event == "" for message in messages)
    for message in messages:
        assert message.data.startswith("<hx-partial") and 'hx-target="#pulse"' in message.data
        check_markup(message.data)
    final = messages[-1].data
    assert 'id="pulse" hidden' in final and "data:image/png;base64," in final
    assert "2 of 2 finished" in final


async def test_a_finished_batch_is_told_at_once(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A failure means that a page that comes late waits for ever."""
    batch = await created(client, "an apple")
    await finished(app)
    events = parse_events((await client.get(f"/studio/batches/{batch}/events")).text)
    assert [event.event for event in events] == ["", "done"]
    assert 'data-state="done"' in events[0].data


async def test_an_unknown_batch_ends_the_stream_at_once(client: httpx.AsyncClient) -> None:
    """A failure means that a page would ask for a batch that is gone again and again."""
    answer = await client.get("/studio/batches/nowhere/events")
    assert answer.status_code == 200
    assert [event.event for event in parse_events(answer.text)] == ["done"]


# ---------------------------------------------------------------------- forms and words


@pytest.mark.parametrize("name", ["steps", "seed", "n"])
@pytest.mark.parametrize("text", ["-1", "1.5", "1e3", "٣", "9" * 5000, "0x10", "true", "1 2"])
def test_numbers_of_a_form_are_read_strictly(name: str, text: str) -> None:
    """A failure means that a typo becomes another number in silence, or an exception of Python's own."""
    with pytest.raises(InvalidRequest) as caught:
        read_params({"prompt": "x", name: text})
    assert caught.value.field == name and len(caught.value.message) < 200


def test_empty_fields_are_left_to_the_catalogue() -> None:
    """A failure means that an empty seed becomes seed 0, or an empty size a refusal."""
    params, n = read_params(parse_form(b"prompt=x&seed=&steps=&size=&scheduler=&n=&guidance_scale="))
    assert (params.seed, params.steps, params.width, params.noise_scheduler, n) == (None, None, None, None, 1)
    params, _ = read_params({"prompt": "x", "seed": str(MAX_SEED), "size": "64 × 96".replace(" ", "")})
    assert (params.seed, params.width, params.height) == (MAX_SEED, 64, 96)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (1.25, "1.2 s"), (9.96, "10 s"), (99.6, "2 min"), (600, "10 min")]
)
def test_durations_are_readable(seconds: float, words: str) -> None:
    """A failure means figures that people cannot read at a glance."""
    assert page_builders.duration(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"), [(None, ""), (12, "1 kB"), (31_220, "31 kB"), (1_234_567, "1.2 MB")]
)
def test_file_sizes_are_readable(size: int | None, words: str) -> None:
    """A failure means figures that people cannot read at a glance."""
    assert page_builders.file_size(size) == words
