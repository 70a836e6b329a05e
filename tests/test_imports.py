"""How the packages may import each other: their order, no circle, nothing inside a function but in a main()."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for path in (*PROJECT.glob("*.py"), *PROJECT.glob("*/*.py"))
                 if path.relative_to(PROJECT).parts[0] not in ("tests", ".venv", "datasets"))
MODULES = {".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in SOURCES}
SLOW_TO_LOAD = {"tensorflow", "sklearn", "gensim", "matplotlib", "ray", "faiss", "pyarrow", "onnx", "starlette",
                "uvicorn"}
# Packages and modules of the first folder, lowest first; those of one rank import each other in no circle.
ORDER = (("util",), ("storage",), ("dataset", "quantization", "tags"), ("models",), ("retrieval",), ("net", "net_val"),
         ("train", "validation", "tag_processing"), ("server",), ("search",), ("gpq", "prepare", "experiments"))
RANKS = {package: rank for rank, packages in enumerate(ORDER) for package in packages}
TRAINING = ("net", "net_val", "train", "validation", "tag_processing")  # which search does without


def imports_of(tree):
    """The import statements of a module with the names of the functions around each, outermost first."""
    def walk(node, functions):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child, functions
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, (*functions, getattr(child, "name", "lambda")))
            else:
                yield from walk(child, functions)
    return walk(tree, ())


def names_in(statement):
    """The names of all modules that an import statement may load."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    return {statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)}


IMPORTS = {name: [(statement, functions, names_in(statement))
                  for statement, functions in imports_of(ast.parse(path.read_text(encoding="utf-8")))]
           for name, path in MODULES.items()}


def package_of(name):
    return name.split(".")[0]


def place(name, statement):
    """Where an import statement is, and what it says."""
    return f"{MODULES[name].relative_to(PROJECT)}:{statement.lineno}: {ast.unparse(statement)}"


# ---------------------------------------------------------------- order

def test_every_module_has_a_rank():
    assert {package_of(name) for name in MODULES} == set(RANKS)


def test_no_package_imports_one_of_a_higher_rank():
    wrong = []
    for name, imports in IMPORTS.items():
        own = package_of(name)
        for statement, _, names in imports:
            for other in {package_of(module) for module in names & MODULES.keys()}:
                if RANKS[other] > RANKS[own] or (own in ("server", "search") and other in TRAINING):
                    wrong.append(place(name, statement))
    assert not wrong, "\n" + "\n".join(wrong)


def test_gpq_prepare_and_experiments_are_imported_by_each_other_only():
    assert set(ORDER[-1]) == {"gpq", "prepare", "experiments"}
    wrong = [place(name, statement) for name, imports in IMPORTS.items() for statement, _, names in imports
             if {package_of(module) for module in names & MODULES.keys()} & set(ORDER[-1])
             and package_of(name) not in ORDER[-1]]
    assert not wrong, "\n" + "\n".join(wrong)


def circle_in(needs):
    """A circle in `{name: names that it needs}` as a list that ends as it begins, or None."""
    done = set()

    def visit(name, chain):
        if name in chain:
            return [*chain[chain.index(name):], name]
        if name in done:
            return None
        done.add(name)
        return next(filter(None, (visit(other, [*chain, name]) for other in sorted(needs[name]))), None)
    return next(filter(None, (visit(name, []) for name in needs)), None)


def test_a_circle_is_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_module_and_no_package_imports_itself_through_others():
    modules = {name: {module for _, functions, names in imports if not functions for module in names & MODULES.keys()}
               - {name} for name, imports in IMPORTS.items()}
    packages = {package: set() for package in RANKS}
    for name, imports in IMPORTS.items():
        for _, _, names in imports:  # also those within a main()
            packages[package_of(name)] |= {package_of(module) for module in names & MODULES.keys()} - {package_of(name)}
    for needs in (modules, packages):
        circle = circle_in(needs)
        assert circle is None, " imports ".join(circle)


# ---------------------------------------------------------------- within functions

# search.open_index is what people call in a notebook: a program's main(), so to speak.
MAY_IMPORT = {"main": SOURCES, "open_index": [PROJECT / "search.py"]}


def test_only_main_imports_inside_a_function():
    wrong = [f"{place(name, statement)} in {functions[-1]}()" for name, imports in IMPORTS.items()
             if not MODULES[name].stem.startswith("bench_")  # those time imports
             for statement, functions, _ in imports
             if functions and MODULES[name] not in MAY_IMPORT.get(functions[0], ())]
    assert not wrong, "\n" + "\n".join(wrong)


# ---------------------------------------------------------------- TensorFlow

WITHOUT_TENSORFLOW = [name for name in MODULES if package_of(name) in ("retrieval", "server", "search")
                      or name in ("models.encoder", "models.checkpoint", "models.features", "models.make_encoder")]


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_search_never_loads_tensorflow(name):
    """Neither itself nor through others, also not within a function."""
    waiting, seen = [(name, [])], set()
    while waiting:
        module, way = waiting.pop()
        for statement, _, names in IMPORTS[module]:
            step = [*way, place(module, statement)]
            assert "tensorflow" not in {package_of(other) for other in names}, "\n" + "\n".join(step)
            for other in names & MODULES.keys() - seen:
                seen.add(other)
                waiting.append((other, step))


def test_searching_and_building_load_no_package_that_only_making_an_encoder_needs():
    wrong = [name for name in MODULES if package_of(name) in ("retrieval", "server")
             and "models.make_encoder" in all_needs(name)]
    assert not wrong


# ---------------------------------------------------------------- programs

def is_program(path):
    text = path.read_text(encoding="utf-8")
    return 'if __name__ == "__main__"' in text and "argparse" in text and not path.stem.startswith("bench_")


PROGRAMS = [name for name, path in MODULES.items() if is_program(path)]


def all_needs(name):
    """The modules that a module loads, itself or through others, also those that its functions load."""
    found, waiting = set(), [name]
    while waiting:
        new = {other for _, _, names in IMPORTS[waiting.pop()] for other in names & MODULES.keys()} - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("name", [name for name in PROGRAMS if "." in name and package_of(name) != "gpq"])
def test_no_file_next_to_a_program_is_taken_for_a_module_that_it_needs(name):
    """Python looks for modules in the folder of a program first. Those of gpq are run by -m."""
    path = MODULES[name]
    near = {other.stem for other in path.parent.glob("*.py")}
    assert not near & all_needs(name) or re.search(r"del sys\.path\[0\]", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_answers_without_what_is_slow_to_load(name):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", name, "--help"], cwd=PROJECT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("usage: ")
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & SLOW_TO_LOAD
