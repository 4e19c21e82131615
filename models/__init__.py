"""The training reference: Ioffe & Szegedy's Batch Normalization (ICML 2015, arXiv 1502.03167) in PyTorch.

Read in this order to see why folding is exact:

    bn          Algorithm 1 (train) and Algorithm 2 (population statistics): after the second, BN is `s*x + t`
    inception   BN-Inception, Figure 5
    config      the paper's named recipes, one dataclass
    data        Fashion-MNIST, MNIST, an ImageNet folder
    train       the loop, in plain sight
    export      ONNX with every BatchNormalization node intact: what bnfold then folds

It runs from the repository root (`python -m models.train`) and is never part of the wheel.
"""
