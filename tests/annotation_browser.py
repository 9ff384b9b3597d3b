"""What the browser tests stand on: a real `jupyter lab` or Voila, and headless Chromium that presses keys.

Nothing waits for a fixed time: everything waits for what the page or the store shows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, free_port, until

CHROMIUM = "/usr/bin/chromium"
ROOT = Path(__file__).parents[1]
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
PATIENCE_MS = 1000 * PATIENCE


def skip_without_browser() -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium", allow_module_level=True)


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Any, **options: Any) -> Iterator[Any]:
    """A page whose console errors are collected in `page.errors`."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.errors = []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    try:
        yield page
    except BaseException:
        shot(page, f"failed-{time.strftime('%H%M%S')}")
        raise
    finally:
        context.close()


def environment(home: Path, **more: str) -> dict[str, str]:
    """A server's environment with settings of its own, so that the person's JupyterLab is not touched."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "LLAMA2LAB"))}
    path = os.pathsep.join(p for p in (str(ROOT), keep.get("PYTHONPATH", "")) if p)
    return {
        **keep,
        "PYTHONPATH": path,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "PYTHONUNBUFFERED": "1",
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        **more,
    }


@contextmanager
def running(command: list[str], env: dict[str, str], cwd: Path, log: Path, url: str) -> Iterator[subprocess.Popen]:
    """A server that answers at `url`; ended with all of its kernels."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until(lambda: answers(url) or process.poll() is not None, f"{command[2:4]} answers at {url}")
        assert process.poll() is None, log.read_text()[-2000:]
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status < 500
    except urllib.error.HTTPError as e:
        return e.code < 500
    except OSError:
        return False


@contextmanager
def jupyter_lab(folder: Path, *flags: str, **more: str) -> Iterator[str]:
    """The address of a JupyterLab whose files are in `folder`; `more` goes to its environment."""
    port, home = free_port(), folder / ".jupyter-of-the-test"
    for path, settings in (
        ("@jupyterlab/apputils-extension/notification", {"checkForUpdates": False, "fetchNews": "false"}),
        ("@jupyterlab/completer-extension/manager", {"autoCompletion": False}),
    ):
        file = home / "settings" / f"{path}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--allow-root",
        "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={folder}",
        *flags,
    ]
    with running(command, environment(home, **more), folder, folder / "lab.log", f"http://127.0.0.1:{port}/api/status"):
        yield f"http://127.0.0.1:{port}"


def write_notebook(path: Path, *cells: str) -> None:
    path.write_text(
        json.dumps(
            {
                "cells": [
                    {
                        "cell_type": "code",
                        "id": f"cell-{i}",
                        "metadata": {},
                        "source": source,
                        "outputs": [],
                        "execution_count": None,
                    }
                    for i, source in enumerate(cells)
                ],
                "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )


class Form:
    """The annotation form in a page, as one who uses only the keyboard knows it."""

    def __init__(self, page: Any, nth: int = 0):
        self.page = page
        self.root = page.locator(".l2a").nth(nth)

    def state(self) -> str:
        return self.root.get_attribute("data-state") or ""

    def item(self) -> str:
        return self.root.get_attribute("data-item") or ""

    def wait(self, *states: str) -> None:
        self.page.wait_for_function(
            "([e, states]) => states.includes(e.dataset.state)", arg=[self.root.element_handle(), list(states)]
        )

    def wait_text(self, selector: str, words: str) -> str:
        """Until that part of the form says these words; all that it says."""
        return until(lambda: words in (said := self.text(selector)) and said, f"{selector} says {words!r}")

    def focused(self) -> bool:
        return self.root.evaluate("e => e.contains(document.activeElement)")

    def tab_into(self, presses: int = 60) -> None:
        for _ in range(presses):
            if self.root.evaluate("e => e === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError("Tab does not lead into the form")

    def read(self) -> None:
        """Through the guidelines before the first pair, a page at a time."""
        self.wait("guidelines")
        self.page.wait_for_function("e => e.querySelector('.l2a-reading .l2a-prose')", arg=self.root.element_handle())
        for _ in range(60):
            self.press("Enter")
            if self.state() != "guidelines":
                return
        raise AssertionError("Enter does not lead through the guidelines")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def answer(self, *keys: str) -> str:
        """Presses the keys on an item that is ready, waits until the next one is shown; the item's id."""
        self.wait("item")
        before, at = self.item(), self.text(".l2a-place")
        self.press(*keys)
        self.page.wait_for_function(
            "([e, item, at]) => ['done', 'rest', 'feedback'].includes(e.dataset.state) || "
            "(e.dataset.state === 'item' && "
            "(e.dataset.item !== item || e.querySelector('.l2a-place').textContent !== at))",
            arg=[self.root.element_handle(), before, at],
        )
        return before

    def text(self, selector: str) -> str:
        return self.root.locator(selector).first.text_content() or ""


class Lab:
    """A running JupyterLab, used through its keyboard."""

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url, folder

    def open(self, page: Any, notebook: str, cells: int = 1) -> Form:
        """Opens the notebook and runs its first `cells` cells."""
        page.goto(f"{self.url}/lab/tree/{notebook}?reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.locator(".jp-Spinner").wait_for(state="detached")
        until(lambda: self.has_kernel(notebook), "the notebook has its kernel")
        self.idle(page)
        for number in range(cells):
            self.run_cell(page, number)
            if number + 1 < cells:
                page.keyboard.press("ArrowDown")
        return Form(page)

    def run_cell(self, page: Any, number: int = 0) -> None:
        """Ctrl+Enter, again where JupyterLab was not ready to hear it."""
        prompt = page.locator(".jp-Notebook .jp-Cell .jp-InputPrompt").nth(number)
        before = prompt.text_content()
        for _ in range(20):
            self.command_mode(page)
            page.keyboard.press("Control+Enter")
            try:
                until(lambda: prompt.text_content() != before, "the cell runs", 10)
                return
            except AssertionError:
                continue
        raise AssertionError("Ctrl+Enter does not run the cell")

    def has_kernel(self, notebook: str) -> bool:
        with urllib.request.urlopen(f"{self.url}/api/sessions", timeout=PATIENCE) as reply:
            return any(s["path"] == notebook and s["kernel"]["execution_state"] == "idle" for s in json.load(reply))

    def idle(self, page: Any) -> None:
        page.wait_for_function(
            "() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
        )

    def command_mode(self, page: Any) -> None:
        """Until a cell has the focus, which is when the notebook's own keys work. A JupyterLab that was slow to open
        the notebook leaves the focus nowhere, or asks which kernel it should have."""
        page.wait_for_function("""() => {
            document.querySelector('.jp-Dialog .jp-mod-accept')?.click();
            const at = document.activeElement;
            if (!at?.closest('.jp-Cell')) document.querySelector('.jp-Notebook .jp-Cell.jp-mod-active')?.focus();
            return document.activeElement?.classList.contains('jp-Cell');
        }""")

    def leave(self, page: Any) -> None:
        """From the form back to its cell, with Shift+Tab."""
        for _ in range(10):
            page.keyboard.press("Shift+Tab")
            if page.evaluate("document.activeElement?.classList.contains('jp-Cell')"):
                return
        raise AssertionError("Shift+Tab does not lead out of the form")

    def restart_kernel(self, page: Any) -> None:
        """0, 0 and Enter: the notebook's keys for it."""
        page.keyboard.press("0")
        page.keyboard.press("0")
        page.locator(".jp-Dialog").wait_for()
        page.keyboard.press("Enter")
        page.locator(".jp-Dialog").wait_for(state="detached")
        self.idle(page)

    def sources(self, page: Any) -> list[str]:
        """The cells' text as the page holds it."""
        return page.eval_on_selector_all(
            ".jp-Notebook .jp-InputArea-editor .cm-content", "all => all.map(e => e.innerText)"
        )


def shot(page: Any, name: str) -> None:
    """A picture for people to look at, where LLAMA2LAB_SHOTS names a folder."""
    folder = os.environ.get("LLAMA2LAB_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
