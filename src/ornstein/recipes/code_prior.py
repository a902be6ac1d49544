"""A gated PixelCNN over the codes of a VQ-VAE, or over the coarsest level of a VQ-VAE-2."""

from ornstein.autoencoders.code_drawing import CodeDrawing
from ornstein.autoencoders.prior import CodePrior, PixelCNN
from ornstein.choice import RunRef
from ornstein.encoding import Encoding
from ornstein.objectives.codes import Codes
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

CODEC = RunRef(path="stage:codec")  # of a plan; by itself, the run of a codec

# As wide as two cores can train in some minutes; the papers have hundreds of channels.
RECIPE = Recipe(
    name="code_prior",
    encoding=Encoding(codec=CODEC, form="codes"),
    model=CodePrior(codec=CODEC, network=PixelCNN(channels=32, dropout=0.1)),
    objective=Codes(),
    optim=Optim(lr=1e-3, batch=64, samples=150_000, warmup=5_000, averages=(Power(width=0.07),)),
    generation=CodeDrawing(),
)
