"""The packages of hypernet_d2: each imports only packages below it, so that there is no circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hypernet_d2"
# From the top down. A package may import those after it, with the exceptions below.
ORDER = (
    "cli", "engine", "model_zoo", "export", "evaluation", "data", "checkpoint", "modeling",
    "config", "layers", "deploy", "utils",
)  # fmt: skip
ONLY = {"layers": (), "deploy": ("utils",), "utils": ()}  # what these three may import of ours
FORBIDDEN = {  # third-party packages that a package must not import
    "layers": ("detectron2",),
    "deploy": ("detectron2",),
    "utils": ("detectron2", "torch", "torchvision"),
}


def imported_modules(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports, at any depth of its code."""
    package = ["hypernet_d2", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    """The package directly below hypernet_d2, or the module's name for a file beside them."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_package_is_in_the_order():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_packages_import_only_what_is_below_them(room):
    files = [path for path in PACKAGE.rglob("*.py") if room_of(path) == room]
    assert files
    allowed = ONLY.get(room, ORDER[ORDER.index(room) + 1 :])
    wrong = []
    for path in files:
        for module in sorted(imported_modules(path)):
            parts = module.split(".")
            if parts[0] == "hypernet_d2" and len(parts) > 1:
                if parts[1] in ORDER and parts[1] not in (room, *allowed):
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
            elif parts[0] in FORBIDDEN.get(room, ()):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong
