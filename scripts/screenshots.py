"""Take the pictures of the README: the daemon's page and a report, light and dark.

The real daemon and pipeline serve the state that `make demo` left in feature_repo/data. Without
any, ten weeks of flights are replayed first, in a folder of their own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from demo.__main__ import servers
from demo.processes import free_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
DESKTOP = {"width": 1040, "height": 1160}
PHONE = {"width": 390, "height": 844}
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            "--disable-sync"]  # fmt: skip
SMALL_REPLAY = ["--until", "2013-05-15", "--share", "0.4"]


@contextmanager
def state(repo: Path) -> Iterator[Path]:
    """Give a copy of `repo` with the demo's state in it; what is there is left as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "feature_repo"
        shutil.copytree(repo, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if not (copy / "data" / "monitor" / "monitor.duckdb").is_file():
            print(f"{repo / 'data'} holds no state: ten weeks are replayed first, elsewhere;")
            print("after make demo the pictures are of the whole year", flush=True)
            command = [sys.executable, "-m", "demo", "--repo", str(copy), *SMALL_REPLAY]
            subprocess.run(command, cwd=ROOT, check=True)
        yield copy


def take(browser: Browser, url: str, name: str, *, phone: bool = False, at: str = "") -> None:
    """Take one page in both schemes, as wide as a desk or a phone, from `at` on."""
    for scheme in ("light", "dark"):
        with browser.new_page(viewport=PHONE if phone else DESKTOP, color_scheme=scheme) as page:
            page.goto(url)
            page.evaluate("document.querySelector('.features details').open = true")
            if at:
                page.evaluate("at => document.querySelector(at).scrollIntoView()", at)
            target = IMAGES / f"{name}-{scheme}.png"
            page.screenshot(path=target)
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1024:.0f} KiB")


def main() -> int:
    """Write docs/images/*.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repo", type=Path, default=ROOT / "feature_repo")
    repo = parser.parse_args().repo
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("chromium is missing; scripts/services.sh installs it", file=sys.stderr)
        return 2
    IMAGES.mkdir(parents=True, exist_ok=True)
    with state(repo) as copy, sync_playwright() as play:
        addresses = free_addresses(3)
        report = copy / "report.html"
        with servers(copy, addresses):
            browser = play.chromium.launch(executable_path=chromium, args=CHROMIUM)
            take(browser, f"http://{addresses[0]}/", "page")
            take(browser, f"http://{addresses[0]}/", "phone", phone=True, at=".features")
            browser.close()
        # From what the daemon left behind: the state in one file, with nothing running.
        steadfeast = Path(sys.executable).with_name("steadfeast")
        config = copy / "steadfeast.yaml"
        subprocess.run(
            [steadfeast, "monitor", "report", "--config", config, "--out", report], check=True
        )
        browser = play.chromium.launch(executable_path=chromium, args=CHROMIUM)
        take(browser, report.as_uri(), "report", at=".monitor .charts")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
