"""How the rooms may import each other: no circle, nothing inside a function but in a program's main()."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for path in (*PROJECT.glob("*.py"), *PROJECT.glob("*/*.py"))
                 if path.parent.name not in ("tests", ".venv", "datasets"))
MODULES = {".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in SOURCES}
SLOW_TO_LOAD = {"tensorflow", "sklearn", "gensim", "matplotlib", "ray", "faiss", "pyarrow", "onnx", "onnxruntime",
                "starlette", "uvicorn"}


def imports_of(tree):
    """The import statements of a module with the names of the functions around each, outermost first."""
    def walk(node, functions):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child, functions
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, (*functions, child.name))
            else:
                yield from walk(child, functions)
    return walk(tree, ())


def modules_named(statement):
    """The project's modules that an import statement loads."""
    if isinstance(statement, ast.Import):
        names = {alias.name for alias in statement.names}
    else:
        names = {statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)}
    return names & MODULES.keys()


# Also in a function that main() makes and passes on, such as search.py's, which loads TensorFlow for the first photo.
# search.open_index is what people call in a notebook: a program's main(), so to speak.
MAY_IMPORT = {"main": SOURCES, "open_index": [PROJECT / "search.py"]}


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.stem.startswith("bench_")],  # those time imports
                         ids=lambda path: str(path.relative_to(PROJECT)))
def test_only_main_imports_inside_a_function(path):
    odd = [f"line {statement.lineno} in {functions[-1]}()"
           for statement, functions in imports_of(ast.parse(path.read_text(encoding="utf-8")))
           if functions and path not in MAY_IMPORT.get(functions[0], ())]
    assert not odd


def test_no_module_imports_itself_by_way_of_others():
    needs = {name: {other for statement, functions in imports_of(ast.parse(path.read_text(encoding="utf-8")))
                    for other in modules_named(statement) if not functions} - {name}
             for name, path in MODULES.items()}

    def visit(name, chain):
        assert name not in chain, " imports ".join([*chain[chain.index(name):], name])
        if name not in done:
            for other in needs[name]:
                visit(other, [*chain, name])
            done.add(name)
    done = set()
    for name in MODULES:
        visit(name, [])


def all_needs(name):
    """The modules that a module loads, itself or by way of others, also those that its functions load."""
    found, waiting = set(), [name]
    while waiting:
        tree = ast.parse(MODULES[waiting.pop()].read_text(encoding="utf-8"))
        new = {other for statement, _ in imports_of(tree) for other in modules_named(statement)} - found
        found |= new
        waiting += new
    return found


PROGRAMS = [path for path in SOURCES if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
            and "argparse" in path.read_text(encoding="utf-8") and not path.stem.startswith("bench_")]


@pytest.mark.parametrize("path", [path for path in PROGRAMS if path.parent != PROJECT and path.parent.name != "gpq"],
                         ids=lambda path: str(path.relative_to(PROJECT)))  # those of gpq are run by -m
def test_no_file_beside_a_program_is_taken_for_a_room_that_it_needs(path):
    """Python looks for modules in the folder of a program first."""
    beside = {other.stem for other in path.parent.glob("*.py")}
    needed = all_needs(".".join(path.relative_to(PROJECT).with_suffix("").parts))
    assert not beside & needed or "del sys.path[0]" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [*([".".join(path.relative_to(PROJECT).with_suffix("").parts)]
                                       for path in PROGRAMS), ["search", "serve"]], ids=" ".join)
def test_help_answers_without_what_is_slow_to_load(command):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", *command, "--help"], cwd=PROJECT,
                          capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & SLOW_TO_LOAD
