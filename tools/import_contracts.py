"""A contract for import-linter: other packages may import only some modules of a package."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class InterfaceContract(Contract):
    """Outside of the package `room`, only its modules `public` may be imported, and each of them must be."""

    type_name = "interface"

    room = fields.StringField()
    public = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        room, public = str(self.room), {f"{self.room}.{name}" for name in self.public}
        inside = {room, *graph.find_descendants(room)}
        found = {
            (importer, module)
            for module in inside
            for importer in graph.find_modules_that_directly_import(module) - inside
        }
        forbidden = sorted((importer, module) for importer, module in found if module not in public)
        needless = sorted(public - {module for _, module in found})
        return ContractCheck(
            kept=not forbidden and not needless, metadata={"forbidden": forbidden, "needless": needless}
        )

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, module in check.metadata["forbidden"]:
            output.print_error(f"{importer} imports {module}, which is not public in {self.room}")
        for module in check.metadata["needless"]:
            output.print_error(f"{module} is public, but nothing outside of {self.room} imports it")
