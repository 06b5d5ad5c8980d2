"""`HubUpload`: uploads checkpoints to the Hugging Face Hub."""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from jaxcb._src.core.callback import Callback
from jaxcb._src.utils.errors import check_choice, check_text, shown
from jaxcb._src.utils.pytree import static


class HubUpload(Callback):
    """Uploads complete checkpoints to a repository of the Hugging Face Hub. Requires `pip install jaxcb[hub]`.

    Each checkpoint becomes a commit, under its directory's name. The device finishes the steps that were dispatched
    while the upload runs, and then waits for it. If the Hub cannot be reached, there is a warning, the run
    continues, and the next checkpoint is uploaded again. The token is that of `hf auth login` or `HF_TOKEN`.

    Args:
        repo_id: the repository, "user/name"; it is created if it does not exist.
        kind: "export" for what `ModelCheckpoint` saves, "run" for the checkpoints from which the run resumes.
        path_in_repo: a directory of the repository, to which checkpoints are uploaded; empty for its root.
        private: whether a repository that is created is private.
        revision: the branch; None for the main one.
        endpoint: address of the Hub; None for the one that `HF_ENDPOINT` sets, or the public one.

    Raises:
        TypeError: if a text is not a string.
        ValueError: for an invalid `repo_id` or `kind`.

    Example:
        >>> import jaxcb as jc
        >>> callbacks = [jc.ModelCheckpoint("best", save_best_only=True), jc.callbacks.HubUpload("me/digits")]
        >>> callbacks[1].kind
        'export'

    Source: `huggingface_hub.HfApi.upload_folder`.
    """

    logs_only: ClassVar[bool] = True

    repo_id: str = static()
    kind: Literal["run", "export"] = static(default="export", kw_only=True)
    path_in_repo: str = static(default="", kw_only=True)
    private: bool = static(default=False, kw_only=True)
    revision: str | None = static(default=None, kw_only=True)
    endpoint: str | None = static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_text("HubUpload", "repo_id", self.repo_id)
        for name in ("revision", "endpoint"):
            if getattr(self, name) is not None:
                check_text("HubUpload", name, getattr(self, name))
        if not isinstance(self.path_in_repo, str):
            raise TypeError(f"HubUpload: path_in_repo must be a string, got {shown(self.path_in_repo)}.")
        if self.repo_id.count("/") != 1 or not all(self.repo_id.split("/")):
            raise ValueError(f"HubUpload: repo_id must be 'user/name', got {self.repo_id!r}.")
        if not isinstance(self.private, bool):
            raise TypeError(f"HubUpload: private must be True or False, got {self.private!r}.")
        check_choice("HubUpload", "kind", self.kind, ("run", "export"))

    def checkpoint_listener(self) -> Callable[[Any, Any], Any]:
        if importlib.util.find_spec("huggingface_hub") is None:
            raise ImportError("HubUpload needs the package huggingface_hub: pip install jaxcb[hub].")
        return self._upload

    def _upload(self, run: Any, checkpoint: Any) -> None:
        if checkpoint.kind != self.kind:
            return
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint)
        try:
            api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            api.upload_folder(
                repo_id=self.repo_id,
                folder_path=checkpoint.path,
                path_in_repo="/".join(part for part in (self.path_in_repo.strip("/"), checkpoint.path.name) if part),
                commit_message=f"Step {checkpoint.step}, epoch {checkpoint.epoch + 1}",
                revision=self.revision,
            )
        except Exception as error:  # of any kind: training does not depend on the Hub
            warnings.warn(
                f"jaxcb: HubUpload could not upload {checkpoint.path} to {self.repo_id}: {error!r}. The run continues.",
                RuntimeWarning,
                stacklevel=2,
            )
