"""The row array: every row and score unit is one of its own, however many there are."""

from amaranth.hdl import Fragment

from m890.hdl.attention.array import RowArray
from m890.hdl.attention.bundles import ControlBundles
from m890.hdl.config import preset


def test_many_rows_elaborated_here() -> None:
    config = preset("tiny").with_(name="many", rows=11, score_rows=1)
    array = RowArray(config, ControlBundles(config).params, external=False)
    parts, names, _ = zip(*Fragment.get(array, None).subfragments, strict=True)
    assert len({id(part.origins[0]) for part in parts}) == len(parts)
    assert list(names) == [f"{kind}{n}" for kind in ("row", "score") for n in range(11)]
