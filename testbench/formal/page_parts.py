"""The page manager's class for proofs: its blocks cut down to what a proof plays in their place."""

from types import ModuleType
from typing import Any

from amaranth.hdl import Module
from amaranth.hdl._ast import AnySeq

from m890.hdl.control.address_check import AddressCheck
from m890.hdl.pages import commands, flow, manager, prepare, rules
from m890.hdl.pages.copier import PageCopier
from m890.hdl.pages.mover import Mover
from m890.hdl.pages.store import PageStore
from m890.hdl.pages.walker import PageWalker
from m890.testbench.formal.small import Table, again


class NoCheck(AddressCheck):
    """Any answer, at once."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.ok.eq(AnySeq(1))
        return m


class NoCopy(PageCopier):
    """What lies in pages is not part of the proof."""

    def elaborate(self, platform: Any) -> Module:
        return Module()


class NoMove(Mover):
    """The proof moves page numbers itself, at once; any outcome."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += [self.i.ready.eq(1), self.idle.eq(1)]
        with m.If(self.restart):
            m.d.sync += self.error.eq(AnySeq(1))
        return m


class NoWalk(PageWalker):
    """The proof walks, at once."""

    def elaborate(self, platform: Any) -> Module:
        return Module()


class NoStore(PageStore):
    """The proof has the pages' words."""

    def elaborate(self, platform: Any) -> Module:
        return Module()


def page_manager(twin: ModuleType | None = None, *change: tuple[str, str], **blocks: Any) -> Any:
    """The manager's class, small; one line of the module `twin` may be changed.

    `blocks` are names of blocks and the classes that take their places: by default all that a
    proof plays itself.
    """

    def copy(module: ModuleType, **names: Any) -> Any:
        return again(module, *(change if module is twin else ()), **names)

    played: dict[str, Any] = {
        "AddressCheck": NoCheck, "PageCopier": NoCopy, "Mover": NoMove, "PageStore": NoStore,
        "PageWalker": NoWalk,
    }  # fmt: skip
    return copy(
        manager,
        SecdedSram=Table,
        Flow=copy(flow).Flow,
        PageRules=copy(rules).PageRules,
        Commands=copy(commands).Commands,
        Prepare=copy(prepare).Prepare,
        **(played | blocks),
    ).PageManager
