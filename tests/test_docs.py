"""The documents: every link leads to a file or heading that exists, and the programs accept every command line.

Blocks of bash are run by bash itself, so that variables, loops and quotes mean what they mean to a reader. But python,
pip and so on are functions that only record their arguments.
"""
import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from util import ROOT

DOCUMENTS = sorted(str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "*/README.md")
                   for path in ROOT.glob(pattern) if not path.parent.name.startswith("."))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"`((?:python|bash) [^`]+)`")
EXTRAS = re.compile(r"""pip install -e '?\.\[([\w,]+)\]""")
TEST = re.compile(r"`((?:\w+/)*test_\w+\.py|\w+)…?`")
PARSERS = ("parse_arguments", "parse_options", "parse_args")  # the possible names of a program's function that parses

RECORDER = """
set -euf
here=.
record() { printf '%s\\0' $# "$here" "$@" >&3; }
python() { record python "$@"; }
bash() { record bash "$@"; }
cd() { here=$here/$1; }
pip() { :; }
curl() { :; }
source() { :; }
python3.11() { :; }
"""


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(name):
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(name)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings_that_exist(name):
    for link in LINK.findall(FENCE.sub("", read(name))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {link}, which does not exist"
        assert not anchor or anchor in anchors(target), f"{name} links to {link}, but there is no such heading"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_extras_that_a_document_installs_exist(name):
    known = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    for extras in EXTRAS.findall(read(name)):
        assert set(extras.split(",")) <= known.keys(), f"{name} installs [{extras}], which pyproject.toml does not have"


def test_the_readme_can_be_read_in_one_go():
    assert len(read("README.md").splitlines()) <= 110


def test_the_table_of_faults_names_tests_that_exist():
    for row in read("tests/README.md").partition("## Faults")[2].splitlines():
        file = source = ""
        for name in TEST.findall(row.rpartition(" | ")[2]):
            if name.endswith(".py"):
                file, source = name, read(f"tests/{name}")
            elif source and "_" in name:
                assert name in source, f"tests/README.md names {name} in tests/{file}, which does not have it"


def recorded_calls(script, folder):
    """The calls of python and bash in a bash script, as [folder below the project, program, argument, …]."""
    (folder / "block.sh").write_text(RECORDER + script, encoding="utf-8")
    with (folder / "calls").open("wb") as calls:
        ran = subprocess.run(["/bin/sh", "-c", 'exec "$0" block.sh 3>&1 1>&2', shutil.which("bash")], cwd=folder,
                             stdout=calls, stderr=subprocess.PIPE, text=True,
                             env={"PATH": str(folder / "none"), "HOME": "/home/reader", "LC_ALL": "C.UTF-8"})
    assert ran.returncode == 0, f"{ran.stderr}\n{script}"
    parts = (folder / "calls").read_text(encoding="utf-8").split("\0")
    found = []
    while len(parts) > 1:
        count = int(parts[0]) + 1
        found.append(parts[1:1 + count])
        parts = parts[1 + count:]
    return found


class Parsed(Exception):
    """A program's arguments were accepted."""


def run_parser(module):
    """Call the function of a program that parses; where main() parses, stop there. A wrong argument is SystemExit."""
    for name in PARSERS:
        if hasattr(module, name):
            getattr(module, name)()
            return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser):
        parse(parser)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        with pytest.raises(Parsed):
            module.main()


def exit_code(program, arguments):
    """The exit code of a program's parser for these arguments, 0 or 2. `program`: path of its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(program), *arguments])
        patch.syspath_prepend(program.parent)  # as Python does with the folder of a program
        module = importlib.import_module(".".join(program.relative_to(ROOT).with_suffix("").parts))
        try:
            if hasattr(module, "argparse"):
                run_parser(module)
        except SystemExit as end:
            return end.code or 0
    return 0


def check_call(call, capsys):
    """Check a call of python or bash: [folder below the project, program, argument, …]."""
    here, shell, *arguments = [argument for argument in call if argument != "…"]  # "…" means more options
    folder = ROOT / here
    if shell == "bash":
        assert (folder / arguments[0]).is_file(), f"{shlex.join(call)}: there is no such script"
        return
    if arguments[0] == "-m":
        path, arguments = folder / (arguments[1].replace(".", "/") + ".py"), arguments[2:]
    else:
        path, arguments = folder / arguments[0], arguments[1:]
    assert path.is_file(), f"{shlex.join(call)}: there is no such program"
    assert exit_code(path.resolve(), arguments) == 0, f"{shlex.join(call)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_programs_accept_the_command_lines_of_documents(name, tmp_path, capsys):
    text = read(name)
    blocks = "".join(block for language, block in FENCE.findall(text) if language == "bash")
    spans = [[".", *shlex.split(span)] for span in SPAN.findall(FENCE.sub("", text))]
    for call in recorded_calls(blocks, tmp_path) + spans:
        check_call(call, capsys)


@pytest.mark.parametrize("line", ["python train.py flickr", "python no_such.py", "python search.py build",
                                  "python -m gpq.train --no-such 0", "bash scripts/no_such.sh",
                                  "python prepare/demo.py out --no-such"])
def test_a_wrong_command_line_would_be_found(line, tmp_path, capsys):
    for call in recorded_calls(line, tmp_path):
        with pytest.raises(AssertionError, match=r"no such|required|unrecognized"):
            check_call(call, capsys)


def test_loops_and_variables_are_those_of_bash(tmp_path):
    script = 'cd scripts\nx="a b"\nfor i in 1 2; do python train.py "$x" $i; done'
    assert recorded_calls(script, tmp_path) == [["./scripts", "python", "train.py", "a b", i] for i in "12"]
    with pytest.raises(AssertionError, match="unbound"):
        recorded_calls("python train.py $nowhere", tmp_path)
