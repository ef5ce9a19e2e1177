"""Tests. A package, because torch-fidelity installs one of the same name that Ray's workers would find instead."""
