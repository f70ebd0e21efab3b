"""Editable installs only: Python sees hdl/, firmware/, sim/, testbench/ as m890.hdl and so on."""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Links(BuildHookInterface):
    """Makes the git-ignored folder of links that the editable install puts on the path."""

    def initialize(self, version, build_data):
        if version == "editable":
            root = Path(self.root)
            farm = root / ".hatch" / "m890"
            farm.mkdir(exist_ok=True)
            for name in ("hdl", "firmware", "sim", "testbench"):
                link = farm / name
                if not link.is_symlink():
                    link.symlink_to(f"../../{name}", target_is_directory=True)
