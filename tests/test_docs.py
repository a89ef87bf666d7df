from __future__ import annotations

import re
from pathlib import Path

import pytest

from anomaly_times.models import list_models
from anomaly_times.settings import Source

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "helm" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in headings(file), f"{page.name} links to {target}"


def test_every_model_has_its_section() -> None:
    known = headings(ROOT / "docs" / "models.md")
    assert [model.name for model in list_models() if model.name not in known] == []


def test_every_field_of_a_source_is_described() -> None:
    text = (ROOT / "docs" / "sources.md").read_text()
    assert [name for name in Source.model_fields if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_path_of_a_machine(page: Path) -> None:
    here = "|".join(re.escape(f"{folder}/") for folder in (ROOT.parent, Path.home()))
    assert not re.search(rf"({here}|/home/\w+/|/tmp/)", page.read_text())
