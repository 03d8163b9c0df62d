"""Classes of which there is no small pipeline yet, and why."""

UNTESTED: dict[str, str] = {
    "BlipDiffusionControlNetPipeline": "no small pipeline of it is built",
    "BriaFibo2Pipeline": "no small pipeline of it is built",
    "ChromaInpaintPipeline": "Diffusers' own run ends in an error",
    "Cosmos2VideoToWorldPipeline": "its small random run is not finite",
    "Cosmos2_5_TransferPipeline": "it needs torchvision",
    "GlmImagePipeline": "no small pipeline of it is built",
    "Ideogram4Pipeline": "no small pipeline of it is built",
    "JoyImageEditPipeline": "no small pipeline of it is built",
    "JoyImageEditPlusPipeline": "no small pipeline of it is built",
    "Kandinsky5I2IPipeline": "it enlarges its picture, which takes minutes",
    "Kandinsky5I2VPipeline": "its small random run is not finite",
    "Kandinsky6TI2VAPipeline": "no small pipeline of it is built",
    "LTX2ImageToVideoPipeline": "it needs PyAV",
    "OmniGenPipeline": "it needs torchvision",
    "QwenImage21Pipeline": "no small pipeline of it is built",
    "VisualClozeGenerationPipeline": "no small pipeline of it is built",
    "VisualClozePipeline": "no small pipeline of it is built",
}
