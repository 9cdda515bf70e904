"""The rules of the house, as functions over a checkout. Each returns what breaks its rule.

A line of what they return names the file, what is wrong with it, and what to do.
"""

import ast
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

TUTORIAL = Path("content/notebook.ipynb")
TOP_LEVEL = {"README.md", "requirements.txt", "convert_to_md.sh", "content", "ci"}
SERVICE = Path("content/serve_forecast_multiplex.py")
SERVICE_LINES = WRITTEN_LINES = 80
README_LINES = 900
CELLS, WORDS = 65, 2300
CODE_LINES = {True: 400, False: 450}  # shown, written files included; True: in the tutorial
CELL_LINES = {True: 12, False: 15}  # in a cell that writes no file
FIRST_FORECAST_BY = 20  # cells
WIDTH = 100  # characters
METADATA = {  # what JupyterLab writes for a kernel of any Python
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MACHINE_PATH = re.compile(r"(?<![\w.-])(?<!:/)/(?:root|work|tmp|home|Users)\b(?=/|\W|$)[^\s'\"]*")
ANSI = re.compile(r"\x1b\[")
PICTURE = re.compile(r'!\[[^]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*\bsrc="([^"]+)"')


def notebooks(root: Path) -> list[Path]:
    """Return the tutorial and the chapters, seen from the checkout."""
    return [
        TUTORIAL,
        *sorted(path.relative_to(root) for path in root.glob("content/chapters/*.ipynb")),
    ]


def read_cells(root: Path, notebook: Path) -> list[dict]:
    """Return a notebook's cells, each with its source as one text."""
    cells = json.loads((root / notebook).read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def code_cells(root: Path, notebook: Path) -> Iterator[tuple[int, dict]]:
    """Iterate over a notebook's code cells, with their numbers: the first cell is 1."""
    for number, cell in enumerate(read_cells(root, notebook), start=1):
        if cell["cell_type"] == "code":
            yield number, cell


def written_file(cell: dict) -> tuple[str, str] | None:
    """Return the file that a code cell writes, seen from content/, and the text; else None."""
    first, _, text = cell["source"].partition("\n")
    written = re.match(r"%%writefile\s+(.+)", first)
    return (written[1].strip(), text) if written else None


def files_in_git(root: Path) -> set[Path]:
    """Return the files of a checkout that git has, or would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=60)
    return {Path(name) for name in done.stdout.split("\0") if name and (root / name).exists()}


# Imports


def modules(root: Path) -> dict[str, Path]:
    """Return the modules in content/ that are ours, by name."""
    found = {}
    for path in sorted(root.glob("content/**/*.py")):
        parts = path.relative_to(root / "content").with_suffix("").parts
        if not parts[-1].endswith(("_pb2", "_pb2_grpc")):  # which are generated
            found[".".join(parts).removesuffix(".__init__")] = path.relative_to(root)
    return found


def imported(tree: ast.AST, known: dict[str, Path]) -> dict[str, int]:
    """Return which of `known` modules a tree imports, at its top or in a function, and where."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names[node.module] = node.lineno
            names |= {f"{node.module}.{alias.name}": node.lineno for alias in node.names}
    return {name: line for name, line in names.items() if name in known}


def floors(root: Path) -> list[str]:
    """Return the library's modules from the top down, as the picture in its docstring has them."""
    package = root / "content/forecast_service/__init__.py"
    picture = ast.get_docstring(ast.parse(package.read_text())) or ""
    rows = re.findall(r"^ {4}(\w+(?: {2}\w+)*)(?: {3,}.*)?$", picture, re.MULTILINE)
    return [f"forecast_service.{name}" for row in rows for name in row.split()]


def room(module: str, path: Path) -> str:
    """Return where in the house a module lies: its folder, or what it is at the top of content/."""
    if len(path.parts) > 2:
        return path.parts[1]
    return "clients" if module.startswith("client") else "entries"


def upward_imports(root: Path) -> list[str]:
    """Imports run downwards only: lab, entries, forecast_service; and there from floor to floor."""
    ours, order = modules(root), floors(root)
    below = {
        "clients": set(),  # they run anywhere, alone
        "forecast_service": {"forecast_service"},
        "entries": {room(*module) for module in ours.items()} - {"clients", "lab"},
        "lab": {room(*module) for module in ours.items()} - {"clients"},
    }
    faults = []
    graph = {}
    for module, path in ours.items():
        tree = ast.parse((root / path).read_text())
        mine = room(module, path)
        if mine == "forecast_service" and module != mine and module not in order:
            faults.append(
                f"{path}: is on no floor: add it to the picture in forecast_service/__init__.py"
            )
        uses = imported(tree, ours)
        graph[module] = set(uses) - {module}
        for used, line in uses.items():
            theirs = room(used, ours[used])
            # a folder of its own is on the floor of the library: it imports that and itself
            if theirs not in below.get(mine, {"forecast_service", mine}):
                faults.append(
                    f"{path}:{line}: imports {used}, which lies above or beside it: {mine} may "
                    "not import " + theirs + ". Move what both need down, into forecast_service/"
                )
            elif {module, used} <= set(order) and order.index(used) <= order.index(module):
                faults.append(
                    f"{path}:{line}: imports {used}, which is on a floor above it (see the picture "
                    "in forecast_service/__init__.py). Move what both need down"
                )
        relative = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level
        ]
        faults += [
            f"{path}:{line}: write the import from content/, not from a dot" for line in relative
        ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        faults.append(f"{ours[error.args[1][0]]}: is in a circle of imports: {circle}. Break it")
    return faults


# What a module does when it is imported, and what it must not name


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Iterate over what runs when a module is imported: all but the bodies of functions."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [*node.decorator_list, node.args]
        elif isinstance(node, ast.Lambda):
            pending.append(node.args)
        elif not (isinstance(node, ast.If) and "__main__" in ast.dump(node.test)):
            pending += ast.iter_child_nodes(node)


def environment_reads_at_import(root: Path) -> list[str]:
    """No module of a service reads the environment when it is imported. A client is none."""
    faults = []
    entries = set(root.glob("content/*.py")) - set(root.glob("content/client*.py"))
    for path in [*sorted(entries), *root.glob("content/forecast_service/**/*.py")]:
        for node in at_import(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and ast.unparse(node.func)
            if (
                (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
                or (isinstance(node, ast.Name) and node.id in ("environ", "getenv"))
                or (called and called.rpartition(".")[2].endswith("Settings"))
            ):
                faults.append(
                    f"{path.relative_to(root)}:{node.lineno}: reads the environment when it is "
                    "imported: make it a setting, or read it in a function"
                )
    return faults


def runtime_envs(root: Path) -> list[str]:
    """No deployment declares a runtime_env: on Anyscale it would lose the driver's packages."""
    faults = []
    paths = [*root.glob("content/serve_*.py"), *root.glob("content/forecast_service/**/*.py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.keyword) and node.arg == "runtime_env"
            if named or (isinstance(node, ast.Constant) and node.value == "runtime_env"):
                line = node.value.lineno if named else node.lineno
                faults.append(
                    f"{path.relative_to(root)}:{line}: declares a runtime_env: pass settings to "
                    "the constructor, and leave the rest to `serve run` or the config file"
                )
    return faults


def code(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Iterate over all Python in content/, files and cells, with where it is."""
    for path in modules(root).values():
        yield str(path), ast.parse((root / path).read_text())
    for notebook in notebooks(root):
        for number, cell in code_cells(root, notebook):
            if not cell["source"].startswith("%%writefile"):
                python = TransformerManager().transform_cell(cell["source"])
                yield f"{notebook}, cell {number}", ast.parse(python)


def private_ray(root: Path) -> list[str]:
    """Nothing uses what Ray keeps to itself: the next release may not have it."""
    private = re.compile(r"ray(?:\.\w+)*?\._[a-z]\w*")
    faults = []
    for place, tree in code(root):
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute):
                names.add(ast.unparse(node))
        found = {match[0] for match in map(private.match, names) if match}
        faults += [
            f"{place}: uses {name}, which is private to Ray: use a documented interface"
            for name in sorted(found)
        ]
    return faults


def reloads(root: Path) -> list[str]:
    """Nothing imports a module again: what it was imported into would keep the old one."""
    return [
        f"{place}: reloads a module: pass what changes as an argument, or start another process"
        for place, tree in code(root)
        if re.search(r"importlib\.reload|from importlib import [^\n]*\breload", ast.unparse(tree))
    ]


def service_in_one_screen(root: Path) -> list[str]:
    """The service of the tutorial is the whole idea in one screen of code."""
    text = (root / SERVICE).read_text()
    faults = []
    if (lines := len(text.splitlines())) > SERVICE_LINES:
        faults.append(
            f"{SERVICE}: has {lines} lines, at most {SERVICE_LINES} fit: what is not the idea "
            "belongs in forecast_service/ or in serve_forecast_production.py"
        )
    if "@serve.multiplexed" not in text:
        faults.append(f"{SERVICE}: has no @serve.multiplexed, which is what it is to show")
    return faults


# Files


def top_level(root: Path) -> list[str]:
    """The checkout's top level is fixed."""
    first = {path.parts[0] for path in files_in_git(root)}
    return [
        f"{name}: the top level has {', '.join(sorted(TOP_LEVEL))} and dotfiles: move it in there"
        for name in sorted(first - TOP_LEVEL)
        if not name.startswith(".")
    ] + [f"{name}: is missing from the top level" for name in sorted(TOP_LEVEL - first)]


def owners(root: Path) -> list[str]:
    """Every file in content/ is written by one cell of one notebook, as it is, or by none."""
    faults, writers = [], {}
    for notebook in notebooks(root):
        for number, cell in code_cells(root, notebook):
            if written := written_file(cell):
                writers.setdefault(written[0], []).append(
                    (f"{notebook}, cell {number}", written[1])
                )
    known = files_in_git(root)
    for name, cells in writers.items():
        path = Path("content") / name
        places = " and ".join(place for place, _ in cells)
        if len(cells) > 1:
            faults.append(f"{path}: is written by {places}: keep one, import the file in the other")
        if name.startswith(("-", "/", "..")) or path not in known:
            faults.append(
                f"{path}: {places} writes it, and git does not have it: give the path from "
                "content/, without options; run the cell, and commit the file"
            )
        elif (root / path).read_text().rstrip("\n") != cells[-1][1].rstrip("\n"):
            faults.append(
                f"{path}: differs from what {places} writes: change the cell, run the notebook, "
                "and commit both"
            )
    return faults


def shown_pictures(root: Path, page: Path) -> set[Path]:
    """Return the pictures of this checkout that a Markdown page shows, seen from the checkout."""
    found = PICTURE.findall((root / page).read_text())
    paths = [path for pair in found for path in pair if path and "://" not in path]
    return {(root / page.parent / path).resolve().relative_to(root.resolve()) for path in paths}


def renderings(root: Path) -> list[str]:
    """Every notebook has its rendering beside it, and every picture that this shows is there."""
    faults, shown = [], set()
    known = files_in_git(root)
    pages = {notebook: notebook.with_suffix(".md") for notebook in notebooks(root)}
    pages[TUTORIAL] = Path("README.md")
    for notebook, page in pages.items():
        if page not in known:
            faults.append(f"{notebook}: has no {page}: run `bash convert_to_md.sh`, commit it")
            continue
        pictures = shown_pictures(root, page)
        shown |= pictures
        faults += [
            f"{page}: shows {picture}, which git does not have: run `bash convert_to_md.sh`, "
            "and commit the picture"
            for picture in sorted(pictures - known)
        ]
    for page in sorted(known - set(pages.values())):
        if page.match("content/chapters/*.md"):
            faults.append(f"{page}: renders no notebook: delete it")
    for picture in sorted(known - shown):
        if picture.match("content/images/*") or picture.match("content/chapters/images/*"):
            faults.append(f"{picture}: no page shows it: delete it")
    return faults


# Notebooks


def metadata(root: Path, notebook: Path) -> list[str]:
    """What a run or an editor notes about itself is not committed: each would change it."""
    book = json.loads((root / notebook).read_text())
    faults = []
    if book["metadata"] != METADATA:
        faults.append(f"{notebook}: its metadata are not {METADATA}")
    faults += [
        f"{notebook}, cell {number}: has metadata beside tags: {sorted(cell['metadata'])}"
        for number, cell in enumerate(book["cells"], start=1)
        if cell["metadata"].keys() - {"tags"}
    ]
    return [f"{fault}. Run `bash convert_to_md.sh`, which cleans them" for fault in faults]


def silent(root: Path, notebook: Path) -> list[str]:
    """Every assert says what is wrong, and a script that fails ends the run of its notebook."""
    faults = []
    for number, cell in code_cells(root, notebook):
        if cell["source"].startswith("%%"):
            continue
        place = f"{notebook}, cell {number}"
        if re.search(r"^%run\b", cell["source"], re.MULTILINE):
            faults.append(f"{place}: %run goes on after an error: use runpy, or call a function")
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell["source"]))):
            if isinstance(node, ast.Assert) and not node.msg:
                faults.append(f"{place}: an assert says nothing: {ast.unparse(node)[:70]}")
    return faults


def wide_commands(root: Path, notebook: Path) -> list[str]:
    """A block of commands in the text is as wide as a page shows it."""
    return [
        f"{notebook}, cell {number}: a line of a block has over {WIDTH} characters: {line[:60]}..."
        for number, cell in enumerate(read_cells(root, notebook), start=1)
        if cell["cell_type"] == "markdown"
        for block in re.findall(r"^```.*?^```", cell["source"], re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if len(line) > WIDTH
    ]


def prose_words(source: str) -> int:
    """Return how many words of prose a Markdown cell has: no code blocks, tags or addresses."""
    text = re.sub(r"```.*?```|<[^>]*>|\]\([^)]*\)", " ", source, flags=re.DOTALL)
    return len(re.findall(r"[A-Za-z0-9][\w'.%-]*", text))


def over_budget(root: Path, notebook: Path) -> list[str]:
    """A notebook is one that people finish."""
    is_tutorial = notebook == TUTORIAL
    cells = read_cells(root, notebook)
    prose = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    shown = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    advice = "cut, move to a chapter or a module, or say in a sentence with a link"
    faults = [
        f"{notebook}: has {count} {what}, at most {most}: {advice}"
        for what, count, most in (
            ("cells", len(cells), CELLS),
            ("words of prose", sum(map(prose_words, prose)), WORDS),
            (
                "lines of code",
                sum(bool(line.strip()) for text in shown for line in text.splitlines()),
                CODE_LINES[is_tutorial],
            ),
        )
        if count > most
    ]
    for number, cell in code_cells(root, notebook):
        written = written_file(cell)
        most = WRITTEN_LINES if written else CELL_LINES[is_tutorial]
        text = written[1] if written else cell["source"].strip()
        if (lines := len(text.splitlines())) > most:
            kind = f"writes {written[0]} with" if written else "has"
            faults.append(
                f"{notebook}, cell {number}: {kind} {lines} lines, at most {most}: split it, or "
                "move code into a module"
            )
    return faults


def late_forecast(root: Path) -> list[str]:
    """The tutorial shows the first forecast of a live service early."""
    asks = [
        number
        for number, cell in code_cells(root, TUTORIAL)
        if re.search(r"run_path\([\"']client\.py\b", cell["source"])
    ]
    if not asks:
        return [f"{TUTORIAL}: no cell runs client.py by runpy.run_path(), the first forecast"]
    if asks[0] > FIRST_FORECAST_BY:
        return [
            f"{TUTORIAL}: the first forecast is in cell {asks[0]}, at most {FIRST_FORECAST_BY}: "
            "move what comes before it behind it"
        ]
    return []


def long_readme(root: Path) -> list[str]:
    """README.md is one that people read."""
    lines = len((root / "README.md").read_text().splitlines())
    if lines > README_LINES:
        return [f"README.md: has {lines} lines, at most {README_LINES}: shorten {TUTORIAL}"]
    return []


def texts(output: dict) -> Iterator[str]:
    """Iterate over what an output has for people to read."""
    yield "".join(output.get("text", ""))
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield "".join(data)


def outputs(root: Path, notebook: Path) -> list[str]:
    """A notebook has run, and what it printed is fit to be read by anybody, anywhere."""
    faults = []
    cells = list(code_cells(root, notebook))
    if idle := [str(number) for number, cell in cells if cell["execution_count"] is None]:
        faults.append(
            f"{notebook}: cells {', '.join(idle)} have not run: run the whole notebook, and save it"
        )
    for number, cell in cells:
        place = f"{notebook}, cell {number}"
        for line in cell["source"].splitlines():
            if len(line) > WIDTH:
                faults.append(f"{place}: a line of code is over {WIDTH} characters: {line[:60]}...")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                faults.append(f"{place}: ends in {output['ename']}: catch it and assert on it")
            if output.get("name") == "stderr":
                faults.append(f"{place}: prints to stderr: print to stdout, or make it quiet")
            for text in itertools.chain(texts(output), output.get("traceback", ())):
                if found := MACHINE_PATH.search(text):
                    faults.append(
                        f"{place}: shows a path of the machine that ran it, {found[0][:60]}: print "
                        "it relative, or leave it out"
                    )
                if ANSI.search(text):
                    faults.append(f"{place}: prints colours of a terminal: turn them off")
            data = output.get("data", {})
            printed = output.get("text", data.get("text/plain", ""))
            if "image/png" in data:
                printed = ""  # the text becomes the picture's
            for line in "".join(printed).splitlines():
                if len(line) > WIDTH:
                    faults.append(
                        f"{place}: prints a line of {len(line)} characters, at most {WIDTH}: "
                        f"{line[:60]}..."
                    )
    return list(dict.fromkeys(faults))


CHECKS = (
    upward_imports,
    environment_reads_at_import,
    runtime_envs,
    private_ray,
    reloads,
    service_in_one_screen,
    top_level,
    owners,
    renderings,
    late_forecast,
    long_readme,
)
NOTEBOOK_CHECKS = over_budget, outputs, metadata, silent, wide_commands
