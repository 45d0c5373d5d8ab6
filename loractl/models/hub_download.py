"""A base model from the hub, or from the hub's cache on this machine."""

from pathlib import Path

from loractl.errors import ModelError

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def from_hub(name: str, trust_remote_code: bool) -> Path:
    """The directory of a model by its hub id. Raises ModelError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    patterns = [*FILES, "*.py"] if trust_remote_code else FILES
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError:
        raise ModelError(f"model {name}: no such directory, and not a valid hub id") from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"model {name}: no such directory, not in the hub's cache, and the hub is unreachable"
        ) from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no"
        raise ModelError(
            f"model {name}: no such directory, and the hub answered {code}; check the name, or log"
            " in"
        ) from None
    except OSError as error:
        raise ModelError(
            f"model {name}: no such directory, and the hub is unreachable ({type(error).__name__})"
        ) from None
