"""``lmf ui``: a page to train a model, talk to it, and take it along.

All that the page does are commands of ``lmf``, each a process of its own, and it shows them. It needs Gradio: the extra
``ui``.
"""
