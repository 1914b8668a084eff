"""A contract for import-linter. It says which modules of a room other rooms may import."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class InterfaceContract(Contract):
    """Other rooms may import only the modules `public` of `room`. Each of these must be imported."""

    type_name = "interface"

    room = fields.StringField()
    public = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Implements `Contract`."""
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
        """Implements `Contract`."""
        for importer, module in check.metadata["forbidden"]:
            output.print_error(f"{importer} imports {module}, which is not public in {self.room}")
        for module in check.metadata["needless"]:
            output.print_error(f"{module} is public, but nothing outside of {self.room} imports it")
