"""The β-VAE (Higgins et al. 2017): the KL weighs more, so that codes come apart (notes eq 10)."""

from ornstein.objectives.autoencoding import Autoencoding, Beta
from ornstein.recipes.vae import RECIPE as VAE

RECIPE = VAE.but(name="beta_vae", objective=Autoencoding(divergence=Beta(weight=4.0)))
