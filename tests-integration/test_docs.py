"""The documentation tells the truth: its examples run, and nothing that it must speak of is missing."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
import torch
import transformers
from pages import EVERY, ROOT, Page, pages_of

import nnsight
from nnsight import plugin, testing
from nnsight._core import errors, hookspecs

DOCS = ROOT / "docs"
RAISED = [
    cls
    for cls in vars(errors).values()
    if inspect.isclass(cls) and issubclass(cls, (errors.NNsightError, errors.NNsightWarning))
]


@pytest.fixture(autouse=True)
def one_thread():
    # The examples are small: handing their parts to threads takes longer than computing them.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("path", pages_of(None), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_examples_of_a_page_run(path, tmp_path, monkeypatch):
    # Some write a file, and some draw.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if path == DOCS / "plugins.md":
        pytest.importorskip("nnsight_example", reason="nnsight-example-family, beside this file, is not installed")
    Page(path).run()


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```python\nassert 1 == 2, 'no'\n```\n", "^no"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "line 2: the page says"),
        ("<!-- raises: KeyError -->\n```python\npass\n```\n", "line 3: nothing was raised"),
        ("```python\nimport warnings, nnsight\nwarnings.warn('', nnsight.NNsightWarning)\n```\n", "warned"),
        ('```python\n--8<-- "nowhere.py"\n```\n', "not there"),
    ],
)
def test_a_page_that_is_wrong_is_found_out(page, complaint, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(AssertionError, match=complaint):
        Page(path).run()


def test_a_captured_body_finds_its_source_in_a_page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("""# Title

1.  In a list:

    ```python
    import nnsight, torch

    model = nnsight.NNsight(torch.nn.Linear(2, 1))
    ```

Then:

```python
with model.trace() as tracer:
    with tracer.invoke(torch.zeros(1, 2)):
        out = model.output
print(out.shape)
1 / 0
```

```text
torch.Size([1, 1])
```
""")
    with pytest.raises(ZeroDivisionError) as error:
        Page(path).run()
    assert (error.traceback[-1].path, error.traceback[-1].lineno + 1) == (path, 18)


def test_a_page_that_runs_elsewhere_is_run_there():
    here = set(pages_of(None))
    for path in set(EVERY) - here:
        said = path.read_text(encoding="utf-8").split("<!-- runs in: ")[1].split()[0]
        package, _, folder = said.partition("/")
        (tests,) = (ROOT / "packages" / package / "tests" / folder).glob("test_*_pages.py")
        assert f'pages_of("{said}")' in tests.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_example_is_fenced_so_that_it_is_not_run(path):
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"^ *```+ *(.*)", text, re.MULTILINE)
    assert set(fences) <= {"", "python", "text", "console", "toml", "{ .python }"}
    assert fences.count("{ .python }") == len(re.findall(r"^``` \{ \.python \}\n--8<-- .*\n```$", text, re.MULTILINE))


@pytest.mark.parametrize("cls", RAISED, ids=lambda cls: cls.__name__)
def test_every_error_has_a_page_with_an_example_that_raises_it(cls):
    page = Page(DOCS / "errors" / f"{cls.__name__}.md")
    headings = re.findall(r"^## (.*)$", page.text, re.MULTILINE)
    assert headings == ["Symptom", "Cause", "Fix"]
    kind = "warns" if issubclass(cls, Warning) else "raises"
    assert cls.__name__ in [block.options.get(kind) for block in page.blocks]
    assert f"({cls.__name__}.md)" in (DOCS / "errors" / "index.md").read_text(encoding="utf-8")


def test_every_hook_is_documented():
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "nnsight_spec")]
    assert hooks
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(\w+)`", page, re.MULTILINE)
    assert sorted(headings) == sorted(hooks)


def test_the_page_of_architectures_lists_those_that_are_asked_about():
    from nnsight_hf.oracle import exceptions, zoo

    page = (DOCS / "reference" / "architectures.md").read_text(encoding="utf-8")
    version = re.search(r"that transformers ([\d.]+) knows", page)
    assert version
    if version[1] != transformers.__version__:
        pytest.skip(f"the page is about transformers {version[1]}")
    listed = re.findall(r"^\| `([^`]+)` \| (?:✓|✗|alone|some) ", page, re.MULTILINE)
    assert sorted([*listed, *exceptions.UNBUILT]) == zoo.architectures()
    wrong = re.findall(r"^\| `([^`]+)` \|.*✗", page, re.MULTILINE)
    assert set(wrong) == set(exceptions.FAILS)


def test_every_public_name_is_in_the_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    entries = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)", pages, re.MULTILINE)}
    mentioned = entries | set(re.findall(r"`(?:nnsight\.)?(\w+)`", pages))
    public = {*nnsight.__all__, *plugin.__all__, *testing.__all__}
    # Errors have pages of their own, which the reference links to.
    errors = {cls.__name__ for cls in RAISED}
    assert {name for name in public - mentioned - errors if not name.startswith("_")} == set()


def test_the_toy_of_how_it_works_is_as_long_as_it_says():
    page = Page(DOCS / "how-it-works.md")
    toy = next(block for block in page.blocks if "greenlet" in block.text)
    lines = [line for line in toy.text.splitlines() if line.strip()]
    assert 30 <= len(lines) <= 45
    assert ast.parse(toy.text)
