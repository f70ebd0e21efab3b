"""What the generator returns."""

from dataclasses import dataclass, field, fields

from m890.hdl.config import ClusterConfig, CoreConfig


@dataclass(frozen=True)
class Port:
    """A port of the top module."""

    name: str
    direction: str  # input or output
    width: int


@dataclass
class ModuleInfo:
    """A generated module: where it comes from, what is in it, and what its signals mean."""

    name: str
    source: str = ""  # the Python class
    summary: str = ""  # first sentence of its docstring
    instances: list[tuple[str, str]] = field(default_factory=list)  # (instance, module)
    signals: dict[str, int] = field(default_factory=dict)  # name -> width, those seen in waves
    enums: dict[str, dict[int, str]] = field(default_factory=dict)  # signal -> value -> name
    floats: dict[str, str] = field(default_factory=dict)  # signal -> wide, operand or element
    external: bool = False  # elaborated once and instantiated by name


@dataclass
class VerilogDesign:
    """Generated Verilog and what tools need to know about it."""

    name: str
    config: CoreConfig
    text: str
    ports: list[Port]
    modules: dict[str, ModuleInfo]
    cluster: ClusterConfig | None = None  # of cores of `config`

    @property
    def label(self) -> str:
        """The configuration's name."""
        return self.config.name if self.cluster is None else self.cluster.name

    def parameters(self) -> dict[str, int | str | bool]:
        own = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
        if self.cluster is not None:
            own |= {"cores": self.cluster.cores, "shared": self.cluster.shared}
        return own

    def ports_json(self) -> dict[str, object]:
        """Ports, parameters and modules, as NAME.json holds them."""
        return {
            "name": self.name,
            "clock": "clk, rising edge",
            "reset": "rst, synchronous, active high",
            "parameters": self.parameters(),
            "ports": [vars(p) for p in self.ports],
            "modules": [
                {"name": m.name, "source": m.source, "instances": dict(m.instances)}
                for m in self.modules.values()
            ],
        }
