"""What annotators see: the widget and the page around it; nothing here imports torch."""
