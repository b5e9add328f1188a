"""FPTT as a scikit-learn estimator, on skorch: `pip install 'fptt[sklearn]'`."""

from digits import num_epochs, pixels

from fptt.integrations.sklearn import FPTTClassifier


def train(epochs: int) -> FPTTClassifier:
    """Return an estimator after so many passes over the training images."""
    net = FPTTClassifier(
        method="fptt",  # or tbptt, or bptt
        num_chunks=4,  # None: √T
        lr=5e-3,
        max_epochs=epochs,
        random_state=0,
    )  # GridSearchCV(net, {"num_chunks": [4, 8], "alpha": [0.0, 0.1]}) compares settings
    images, _, labels, _ = pixels()
    return net.fit(images, labels)


if __name__ == "__main__":
    _, images, _, labels = pixels()
    print(f"test accuracy {train(num_epochs()).score(images, labels):.4f}")
