"""The C header of registers, commands, records, formats and error codes, from the one source."""

from enum import IntEnum

from m890.hdl import commands, registers
from m890.hdl.config import CoreConfig
from m890.hdl.numerics import formats

_ENUMS: tuple[tuple[str, type[IntEnum]], ...] = (
    ("OPCODE", commands.Opcode),
    ("ERROR", commands.Error),
    ("SEGMENT_KIND", commands.SegmentKind),
    ("QUERY", commands.Query),
    ("STATUS", commands.Status),
    ("STALL", registers.Stall),
    ("FORMAT", formats.Format),
    ("OUTPUT_FORMAT", formats.OutputFormat),
)


def c_header(config: CoreConfig, prefix: str = "M890") -> str:
    """A C11 header without dependencies but <stdint.h> and <string.h>.

    Records are byte arrays with one setter and one getter per field, so that neither bit-field
    order nor alignment of the compiler matters.
    """
    guard = f"{prefix}_H"
    lower = prefix.lower()
    out = [
        f"/* {prefix} attention core: registers, commands and records. Generated: do not edit. */",
        "/* SPDX-License-Identifier: Apache-2.0 */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "#include <string.h>",
        "",
        "/* Parameters of this core. */",
        *(
            f"#define {prefix}_{name.upper()} {value}"
            for name, value in (
                ("rows", config.rows),
                ("lanes", config.lanes),
                ("page_tokens", config.page_tokens),
                ("max_head", config.max_head),
                ("pages", config.pages),
                ("planes", config.planes),
                ("sequences", config.sequences),
                ("max_segments", config.max_segments),
                ("port_bytes", config.port_bytes),
            )
        ),
        f"#define {prefix}_IDENT_VALUE UINT32_C({registers.IDENT:#x})",
        f"#define {prefix}_VERSION_VALUE {registers.VERSION}",
        "",
        "/* Registers: byte addresses (AXI4-Lite, 32 bits). */",
    ]
    for register in registers.REGISTERS:
        name = f"{prefix}_REG_{register.name}"
        out.append(
            f"#define {name} {register.address:#05x} /* {register.access}: {register.doc} */"
        )
    for name, enum in _ENUMS:
        out += ["", f"/* {_sentence(enum.__doc__)} */", f"enum {lower}_{name.lower()} {{"]
        out += [f"  {prefix}_{name}_{member.name} = {member.value}," for member in enum]
        out.append("};")
    out += ["", _ACCESS.replace("m890_", f"{lower}_")]
    for record in commands.RECORDS:
        name = record.name.lower()
        out += ["", f"/* {record.name}: {record.doc} */"]
        out.append(f"#define {prefix}_{record.name}_BYTES {record.bytes}")
        out.append(f"typedef struct {{ uint8_t bytes[{record.bytes}]; }} {lower}_{name}_t;")
        for field in record.fields:
            kind = "int64_t" if field.signed else "uint64_t"
            get = f"{lower}_get(r->bytes, {field.lsb}, {field.width})"
            if field.signed:
                sign = f"UINT64_C(1) << {field.width - 1}"
                get = f"(int64_t)(({get} ^ ({sign})) - ({sign}))"
            out += [
                f"/* {field.doc} */",
                f"static inline {kind} {lower}_{name}_{field.name}(const {lower}_{name}_t *r)"
                f" {{ return {get}; }}",
                f"static inline void {lower}_{name}_set_{field.name}({lower}_{name}_t *r,"
                f" {kind} value)"
                f" {{ {lower}_set(r->bytes, {field.lsb}, {field.width}, (uint64_t)value); }}",
            ]
    return "\n".join([*out, "", f"#endif /* {guard} */", ""])


_ACCESS = """\
/* A field of `width` bits (1 to 64) at bit `lsb` of a little-endian record. */
static inline uint64_t m890_get(const uint8_t *bytes, unsigned lsb, unsigned width) {
  uint64_t value = 0;
  for (unsigned i = 0; i < width; ++i)
    value |= (uint64_t)(bytes[(lsb + i) / 8] >> ((lsb + i) % 8) & 1) << i;
  return value;
}
static inline void m890_set(uint8_t *bytes, unsigned lsb, unsigned width, uint64_t value) {
  for (unsigned i = 0; i < width; ++i) {
    const uint8_t bit = (uint8_t)(1u << (lsb + i) % 8);
    uint8_t *byte = &bytes[(lsb + i) / 8];
    *byte = (uint8_t)(value >> i & 1 ? *byte | bit : *byte & ~bit);
  }
}"""


def _sentence(doc: str | None) -> str:
    return " ".join((doc or "").split("\n\n")[0].split())
