"""`python -m m890.sim.docs`: writes docs/_generated, and the committed picture of the README."""

from m890.sim.docs import README_PICTURE, generate
from m890.sim.docs.graph import ROOT

generate(ROOT / "docs/_generated")
picture = ROOT / "docs/_generated/diagram-core.svg"
(ROOT / README_PICTURE).write_text(picture.read_text("utf-8"), "utf-8")
