"""Texts of the page: the explanations of terms, and the links."""

HOME = "https://github.com/sparsegen/sparsegen"
LINKS = {
    "Paper": "https://arxiv.org/abs/2104.00464",
    "Documentation": f"{HOME}/blob/main/docs/index.md",
    "Models": f"{HOME}/blob/main/docs/models.md",
    "Source": HOME,
}
MODEL_FILES = HOME + "/tree/main/zoo/models/{}"
INTRODUCTION = (
    "A network maps random noise to a sparse code, a stack of maps in which most entries are zero. A dictionary of "
    "small patterns, the atoms, turns the code into an image. Change the sparsity and watch the images change."
)
DESCRIPTION = (
    "Image generators whose inner representation is a sparse code: change the sparsity and watch the images change; "
    "restore pictures with a network fitted to the picture alone."
)
TERMS = {
    "Code (Γ1, Γ2)": "Maps inside the network, one per atom. Γ1 is the input of the last layer; Γ2 is the input of the "
    "layer before it. In a sparse code, most entries are zero.",
    "Dictionary and atoms": "The last layer, D1. It has one small pattern of pixels, an atom, per map of Γ1. The image "
    "is the sum of the atoms, each multiplied by an entry of the code.",
    "Needle": "The entries of a code at one position, one per atom.",
    "Sparsity (k)": "The number of entries that are kept: those with the largest magnitudes. The others are set to "
    "zero. A smaller k gives a sparser code. k can differ from the k of training.",
    "Density": "The share of entries that are not zero.",
    "baseline": "A regularizer: none. The codes are not made sparse; the others are compared with it.",
    "l0_inf": "A regularizer: each needle of Γ1 keeps at most k entries.",
    "l0": "A regularizer: Γ1 keeps at most k entries in the whole image.",
    "l1": "A regularizer: training has a penalty on the magnitudes of Γ1. Nothing is set to zero while sampling.",
    "ml": "A regularizer: each needle of Γ1 and each needle of Γ2 keeps at most k entries (multi-layer).",
    "Distance": "The Fréchet distance between the features of generated images and of training images; lower is "
    "better. The features are those of EfficientNet-Lite0, so it is not an FID. Real test images also have a distance "
    "above 0.",
    "Seed": "The number from which the random noise is drawn. The same seed and settings give the same pixels.",
}
