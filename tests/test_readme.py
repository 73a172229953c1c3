"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {})
    out = capsys.readouterr().out
    if "local_logits" in SNIPPETS[number]:
        reward = float(out.split()[-1]) / 10_000
        assert out.startswith("tensor(") and abs(reward - 0.5537) < 0.002
        return
    printed = [float(word) for word in out.split()]
    if "noisy_or" in SNIPPETS[number]:
        # Eigenvalue of [[.7, 500 · .001], [.4, .3]]: the hub and one of its equal neighbours.
        assert printed == [pytest.approx(0.5 + 0.5 * (0.16 + 0.8) ** 0.5, abs=1e-6)]
        return
    assert len(printed) == 2
    if "sysadmin" in SNIPPETS[number]:
        assert printed == pytest.approx([0.1, 3.3299], abs=1e-6)
    else:
        assert printed[1] < 1.0


def test_snippets_are_short() -> None:
    assert len(SNIPPETS) == 4
    for snippet in SNIPPETS:
        lines = [line for line in snippet.splitlines() if line.strip()]
        assert len(lines) <= 20


def test_the_symbol_table_names_what_exists() -> None:
    import torchloc

    for path in re.findall(r"`(torchloc/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`([A-Z]\w+)`", TEXT.split("## Symbols")[1]):
        source = "\n".join(p.read_text() for p in Path(torchloc.__file__).parent.rglob("*.py"))
        assert re.search(rf"\b(class|def) {name}\b", source), name


def test_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / path).stat().st_size > 10_000
