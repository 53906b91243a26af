"""botocore looks for its files with os.path; in the binary they are members of the archive.

These are the descriptions of services, and the certificates that it trusts.
"""

from __future__ import annotations

import json
import os
import sys
import zipimport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def prepare(archive: str) -> None:
    """Makes `botocore.loaders` read the archive, and nothing of the machine's: no ~/.aws/models, no AWS_DATA_PATH."""
    import impound_boot
    from botocore import httpsession, loaders

    importer = zipimport.zipimporter(archive)
    top = f"{archive}/"
    data = f"{top}botocore/data"
    files: dict[str, object] = importer._files  # type: ignore[attr-defined]  # noqa: SLF001
    members = {name for name in files if name.startswith("botocore/data/")}

    # OpenSSL wants a path.
    certificates = impound_boot.nameless("cacert.pem")
    os.write(certificates, importer.get_data(f"{top}botocore/cacert.pem"))
    httpsession.where = lambda: f"/proc/self/fd/{certificates}"

    class Files:
        def exists(self, path: str) -> bool:
            return f"{path}.json".removeprefix(top) in members

        def load_file(self, path: str) -> Any:
            if self.exists(path):
                return json.loads(importer.get_data(f"{path}.json"))
            return None

    def parts() -> list[list[str]]:
        return [name.split("/")[2:] for name in members]

    def list_available_services(_: object, type_name: str) -> list[str]:
        return sorted({part[0] for part in parts() if len(part) == 3 and part[2] == f"{type_name}.json"})

    def list_api_versions(_: object, service_name: str, type_name: str) -> list[str]:
        found = sorted(
            {
                part[1]
                for part in parts()
                if len(part) == 3 and part[0] == service_name and part[2].startswith(type_name)
            }
        )
        if not found:
            raise loaders.DataNotFoundError(data_path=service_name)
        return found

    def potential_locations(_: object, name: str | None = None, *_more: object, **_named: object) -> Iterator[str]:
        yield f"{data}/{name}" if name else data

    loaders.JSONFileLoader = Files
    loaders.Loader.FILE_LOADER_CLASS = Files
    loaders.Loader.BUILTIN_DATA_PATH = data
    loaders.Loader.CUSTOMER_DATA_PATH = f"{archive}/none"
    loaders.Loader.list_available_services = list_available_services
    loaders.Loader.list_api_versions = list_api_versions
    loaders.Loader._potential_locations = potential_locations  # noqa: SLF001
    loaders.Loader.is_builtin_path = lambda _, path: path.startswith(data)


class WhenAsked:
    """A finder that prepares it before the first import of what makes a loader."""

    def __init__(self, archive: str) -> None:
        self._archive = archive

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name == "botocore.session":
            sys.meta_path.remove(self)
            prepare(self._archive)
