"""The part that downloads the model's files."""

from startup.session.parts import Part
from startup.vllm.launch.model_files import ModelFiles
from startup.vllm.launch.vllm_start import VllmStart


class Files(Part[VllmStart]):
    """Downloads missing and changed files of the model beside the imports. Forbids requests to the hub."""

    needs = frozenset({"line"})
    gives = frozenset({"line", "files"})

    def begin(self) -> None:
        self.start.files = ModelFiles(self.start.session, self.start.line, self.start.options.download_timeout_s)

    def before_serving(self) -> None:
        self.start.line = self.start.files.finish()
