"""Classes of which there is no small pipeline yet, and why."""

UNTESTED: dict[str, str] = {
    "Cosmos2_5_TransferPipeline": "its ControlNet resizes by torchvision",
}
