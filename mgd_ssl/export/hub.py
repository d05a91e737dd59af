"""Upload a folder to the Hugging Face hub, or to a server that speaks its language (HF_ENDPOINT)."""

from pathlib import Path

from mgd_ssl.errors import UserError
from mgd_ssl.printable import printable


def push(folder: Path, name: str, message: str) -> str:
    """Upload a folder as a commit of the repository `name`, made if need be; returns its address.

    Raises:
        UserError: when the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # of its HTTP library and of its own, which has changed from version to version
        why = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise UserError(
            f"{name} could not be uploaded to {api.endpoint} ({why}); {folder} is kept: log in by `hf auth login`, "
            "check the name and the network, then upload it by `hf upload`"
        ) from error
    return str(address)
