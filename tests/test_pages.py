"""README.md and every page under docs/: what their commands, Python and installations say is what the program takes.

`make docs-commands` (test_pages_followed.py) runs them.
"""

from __future__ import annotations

import ast
import configparser
import re
import runpy
import shlex
import sys
from pathlib import Path

import click
import pytest
from harness_follow import Place
from harness_pages import NAMES, ROOT, Step, arguments, masked, missing, steps, words
from harness_places import ELSEWHERE, PLACES, why_not

from softcache.cli._main import main, run

ALL = {name: steps(name) for name in NAMES}
WITH_STEPS = [name for name in NAMES if any(step.kind != "mention" for step in ALL[name])]
# Options of other programs that pages speak of.
FOREIGN = {
    "--help",
    "--nnodes",
    "--nproc-per-node",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--max-restarts",
    "--standalone",
}


def command_of(given: list[str]) -> tuple[click.Command | None, list[str]]:
    """The command that ``softcache`` is given, and the words after its name."""
    rest = list(given)
    options = {name: option for option in main.params for name in [*option.opts, *option.secondary_opts]}
    while rest and rest[0].startswith("-"):
        option = options[rest.pop(0)]
        if isinstance(option, click.Option) and not option.is_flag:
            rest.pop(0)
    if not rest:
        return None, []
    context = main.make_context("softcache", [rest[0]])
    found = main.get_command(context, rest[0])
    assert found is not None, f"no command is called {rest[0]}"
    return found, rest[1:]


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}


def parse(given: list[str]) -> None:
    """As the command line does it, with nothing run."""
    found, rest = command_of(given)
    if found is None:
        return
    parent = main.make_context("softcache", [found.name or ""])
    try:
        found.make_context(found.name or "", rest, parent=parent)
    except click.exceptions.Exit:
        assert {"--help", "-h"} & set(rest)


def as_given(step: Step) -> list[list[str]]:
    """The arguments of every ``softcache`` in a step; a script has its lines joined."""
    text = re.sub(r"\\\n\s*", " ", step.text) if step.text.startswith("#!") else step.text
    text = re.sub(r"(?<!--weights) \{weights\}", "", text)  # of measurements: options, if it isn't an option's value
    text = text.replace("$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT", "1/2")
    found = [arguments(line) for line in text.splitlines() if "softcache" in line and not line.startswith("#")]
    return [given for given in found if given is not None]


COMMANDS = [
    pytest.param(step, id=f"{step.where}")
    for name in NAMES
    for step in ALL[name]
    if step.kind in ("shell", "measured") and as_given(step)
]


@pytest.mark.parametrize("step", COMMANDS)
def test_the_command_line_takes_what_a_page_says(step: Step, here: Path) -> None:
    for given in as_given(step):
        parse([word.strip("{}") for word in given])


@pytest.mark.parametrize("name", [name for name in NAMES if any(step.kind == "mention" for step in ALL[name])])
def test_commands_in_sentences_have_options_that_exist(name: str) -> None:
    for step in ALL[name]:
        if step.kind != "mention":
            continue
        given = arguments(re.sub(r"\[[^\]]*\]|…", "", step.text))
        if given and not given[0].isupper():
            found, rest = command_of(given)
            known = (
                {option for parameter in found.params for option in [*parameter.opts, *parameter.secondary_opts]}
                if found
                else set()
            )
            assert {word for word in rest if word.startswith("--")} <= known | {"--help"}, step.where
        elif given is None:
            assert script(step) is None or script(step).exists(), step.where  # type: ignore[union-attr]


def script(step: Step) -> Path | None:
    """The file of this project that a command of Python runs."""
    given = words(step.text.partition("…")[0])
    if given[:2] == ["python", "-m"]:
        return ROOT / (given[2].replace(".", "/") + ".py") if given[2].startswith("benchmarks.") else None
    if given[0] == "python" and given[1].startswith("examples/"):
        return ROOT / given[1]
    return None


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/coming-from.md"])  # options of others
def test_options_in_sentences_exist(name: str) -> None:
    """`--T 4` in a sentence is an option of some command, or of an example that the page speaks of."""
    text = re.sub(r"^```.*?^```|^ {4}.*?$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.M | re.S)
    known = options_of(main)
    context = main.make_context("softcache", ["info"])
    for each in main.list_commands(context):
        found = main.get_command(context, each)
        assert found is not None
        known |= options_of(found)
    mine = {step.text for step in ALL[name] if step.text.startswith(("python ", "softcache "))}
    elsewhere = {word for text in mine for word in re.findall(r"--[\w-]+", text) if text.startswith("python ")}
    named = set(re.findall(r"`(--[a-zA-Z][\w-]*)", text))
    assert named <= known | elsewhere | FOREIGN | examples(text), name


def examples(text: str) -> set[str]:
    """Options of the examples and measurements that a page names."""
    files = [ROOT / found for found in re.findall(r"(examples/\w+\.py)", text)]
    files += sorted((ROOT / "benchmarks").glob("*.py")) if "benchmarks" in text else []
    return {option for file in files for option in re.findall(r'"(--[\w-]+)"', file.read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docs/many.md", {"teach", "dump", "sweep", "compare"}),
        ("docs/stores.md", {"copy", "info", "train", "dump"}),
        ("docs/scale.md", {"dump", "plan"}),
        ("docs/ranks.md", {"train"}),
    ],
)
def test_a_page_has_the_commands_that_it_is_about(name: str, expected: set[str]) -> None:
    assert {given[0] for step in ALL[name] if step.kind == "shell" for given in as_given(step)} == expected


@pytest.mark.parametrize("word", ["--local-cache", "--local-size", "--expect", "--staging", "shards:N"])
def test_the_page_of_stores_names_the_options_of_stores(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "dump"):
        run([name, "--help"])
    assert word in (ROOT / "docs" / "stores.md").read_text(encoding="utf-8")
    assert word in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in NAMES if any(step.kind in ("python", "file") for step in ALL[name])])
def test_python_on_a_page_is_python(name: str) -> None:
    for step in ALL[name]:
        if step.kind == "python" or step.name.endswith(".py"):
            ast.parse(step.text, step.where)


def test_installations_are_written_in_one_way_and_name_extras_that_exist() -> None:
    """Nothing is released, so that pip needs the clone: `pip install -e '.[s3]'`."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = set(settings["options.extras_require"])
    for name in NAMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "softcache[" not in text, f"{name}: an extra of a release that isn't there"
        for named in re.findall(r"-e '\.\[([\w,-]+)\]'", text):
            assert set(named.split(",")) <= extras, name


def test_nothing_is_set_aside_that_no_page_has() -> None:
    every = [step for name in NAMES for step in ALL[name]]
    for pattern in ELSEWHERE:
        assert any(re.search(pattern, step.text) for step in every), f"no step has {pattern}"
    for name, place in PLACES.items():
        assert name in WITH_STEPS, f"{name} has nothing to run"
        page = "\n".join(step.text for step in ALL[name])
        for old in place.instead:
            assert old in page, f"{name}: nothing says {old!r}"
        for begin in place.skip:
            assert any(step.text.startswith(begin) for step in ALL[name]), f"{name}: no step begins with {begin!r}"


def test_most_commands_run() -> None:
    """Those of measurements are counted apart."""
    found = [step for name in NAMES for step in ALL[name] if step.kind in ("shell", "python")]
    aside = [step for step in found if why_not(step, PLACES.get(step.page, Place()))]
    assert len(aside) < len(found) / 3


def test_what_a_page_is_made_of() -> None:
    page = """# T

    softcache info --json     # a comment
    softcache train \\
        --student s

    $ softcache losses kl
    kl  a loss
    $ python x.py

```text
one
```

```python
# net.py
x = 1
```

```python
y = 2
```
- `softcache info` in a sentence
"""
    found = steps("T", page)
    assert [step.kind for step in found] == ["shell", "shell", "shell", "shell", "file", "python", "mention"]
    assert found[1].text == "softcache train --student s"
    assert found[2].shown == ("kl  a loss",)
    assert found[3].shown == ("one",)
    assert found[4].name == "net.py"
    assert arguments(found[0].text) == ["info", "--json"]
    assert arguments("OMP_NUM_THREADS=2 torchrun --standalone -m softcache train") == ["train"]
    assert shlex.split(found[1].text)[0] == "softcache"


def test_outputs_are_compared_but_for_numbers_and_times() -> None:
    assert masked("epoch  3  loss 0.12   1 min 05 s") == masked("epoch 12 loss 3.4  9.1 s")
    assert missing(("a 1", "…", "c 2 s"), "a 5\nb\nc 1 min 3 s\n") is None
    assert missing(("c", "a"), "a\nc\n") == "a"
    assert missing(("wrote x, 3 …",), "wrote x, 4 files\n") is None


def test_outputs_are_written_where_blocks_are_empty() -> None:
    fill = runpy.run_path(str(ROOT / "docs" / "write_outputs.py"))["fill"]
    page = "    softcache info\n\n```text\n```\n\n    softcache plan\n\n```text\nkept\n```\n"
    epochs = "".join(f"epoch {k}/6  loss 1\n" for k in range(1, 7))
    written = fill(page, {1: f"2 CPU threads, idle\n{epochs}{'wide ' * 40}\n", 6: "other\n"})
    lines = ["epoch 1/6  loss 1", "…", "epoch 5/6  loss 1", "epoch 6/6  loss 1", "wide " * 21 + "…"]
    assert written == page.replace("```text\n```", "\n".join(["```text", *lines, "```"]))
    assert missing(tuple(lines), f"{epochs}{'wide ' * 40}") is None


def test_the_newcomers_path_has_at_most_eight_commands() -> None:
    """benchmarks/newcomer.py takes them from the README and times them."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.newcomer import commands, sized

    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert 6 <= len(found) <= 8
    assert [words(command)[1] for command in found[1:-1]] == ["teach", "dump", "sweep", "report", "export"]
    assert found == [step.text for step in ALL["README.md"] if step.text in found]
    assert [sized(command, 224) for command in found] == found
    assert sum("--size 64" in sized(command, 64) for command in found) == 1
