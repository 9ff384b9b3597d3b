"""The server of `llama2lab annotate`: how many may come, under which names, and what ends when."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from llama2lab.annotation.form import room, serving
from llama2lab.annotation.form.room import Kernels, elsewhere


@pytest.mark.parametrize(
    "ip, host, refused",
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1", "localhost", False),
        ("127.0.0.1", "[::1]", False),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "evil.example", True),
        ("127.0.0.1", "localhost.evil.example", True),
        ("127.0.0.1", "127.0.0.1.evil.example", True),
        ("127.0.0.1", "evil.example.localhost", True),
        ("127.0.0.1", "10.0.0.7", True),
        ("127.0.0.1", "hub.example.org", False),
        ("127.0.0.1", "hubxexample.org", True),
        ("127.0.0.1", "", True),
        ("localhost", "evil.example", True),
        ("::1", "evil.example", True),
        ("::1", "[::1]", False),
        ("0.0.0.0", "10.0.0.7", False),
        ("0.0.0.0", "evil.example", True),
        ("0.0.0.0", "[fe80::1]", False),
        ("", "evil.example", True),
        ("", "192.168.1.5", False),
        ("0.0.0.0", "teacher", False),
        ("0.0.0.0", "teacher.local", False),
        ("0.0.0.0", "teacher.evil.example", True),
        ("school.lan", "school.lan", False),
        ("0.0.0.0", "1.2.3.4.evil.example", True),
        ("127.0.0.1", "localhost.", False),
    ],
)
def test_other_names_are_refused(monkeypatch: pytest.MonkeyPatch, ip: str, host: str, refused: bool) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "teacher")
    monkeypatch.setattr("socket.getfqdn", lambda: "teacher")
    assert bool(re.match(elsewhere(ip, ["hub.example.org"]), host)) is refused


def test_a_hubs_name_is_known() -> None:
    assert serving.hub_names({"JUPYTERHUB_PUBLIC_URL": "https://hub.example.org/user/ada/"}) == ["hub.example.org"]
    assert serving.hub_names({}) == []


class Kernel:
    execution_state = "idle"
    last_activity: Any = None


class Fake(Kernels):
    """Kernels that take no memory."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.made: dict[str, Kernel] = {}

    def list_kernel_ids(self) -> list[str]:
        return list(self.made)

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self.made

    def get_kernel(self, kernel_id: str) -> Any:
        return self.made[kernel_id]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The room's time in seconds: a little passes whenever it looks, and more when a test says so."""
    now = [0.0]

    def look() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(room, "_now", look)
    return now


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Fake:
    async def start(self: Any, **kwargs: Any) -> str:
        name = f"k{kwargs['number']}"
        self.made[name] = Kernel()
        await asyncio.sleep(0.01)
        self._kernel_connections[name] = 0
        return name

    async def shut(self: Any, kernel_id: str, *args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0.01)
        del self.made[kernel_id]

    base = Kernels.__mro__[1]
    monkeypatch.setattr(base, "start_kernel", start)
    monkeypatch.setattr(base, "shutdown_kernel", shut)
    return Fake(room=3, patience=0, cull_idle_timeout=1)


def test_no_more_kernels_than_there_is_room_for(kernels: Fake) -> None:
    async def come() -> None:
        found = await asyncio.gather(*(kernels.start_kernel(number=n) for n in range(8)), return_exceptions=True)
        assert sum(isinstance(one, str) for one in found) == 3 and len(kernels.made) == 3
        assert {getattr(one, "status_code", None) for one in found if not isinstance(one, str)} == {503}
        await kernels.shutdown_kernel("k0")
        assert await kernels.start_kernel(number=9) == "k9"
        del kernels.made["k1"]  # one that died
        assert await kernels.start_kernel(number=10) == "k10"

    asyncio.run(come())


def test_a_page_that_never_came_or_went_away_makes_room_and_one_that_is_open_does_not(
    kernels: Fake, clock: list[float]
) -> None:
    async def come() -> None:
        for n in range(3):
            kernels.notify_connect(await kernels.start_kernel(number=n))
        clock[0] += 0.5
        with pytest.raises(Exception, match="full"):
            await kernels.start_kernel(number=3)
        kernels.notify_disconnect("k1")
        assert kernels.made["k1"].last_activity is not None and kernels.made["k0"].last_activity is None
        with pytest.raises(Exception, match="full"):  # it may be loading anew
            await kernels.start_kernel(number=3)
        clock[0] += 0.5
        await kernels.start_kernel(number=3)
        assert set(kernels.made) == {"k0", "k2", "k3"}

    asyncio.run(come())


def test_room_for_at_least_one() -> None:
    assert 1 <= serving.room_for() <= serving.MOST_VISITORS
