"""What `shoal cluster` and `shoal eval nmi` say, said again by scikit-learn and numpy in double precision.

    clustering.py agree A.arrow B.arrow                 NMI and AMI of two assignments, as JSON
    clustering.py check F.arrow C.arrow C.safetensors   the projection of the features is PCA with whitening, and every row is with
                                                        its nearest centroid, at the distance that is given

tests/cluster.rs calls it. It needs numpy, scikit-learn, pyarrow and safetensors (ops/peers.sh). Exit status: 0 as it should be.
"""

import json
import sys

import numpy
import pyarrow


def read(path):
    with pyarrow.memory_map(path) as source:
        return pyarrow.ipc.open_file(source).read_all()


def agree(first, second):
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    first, second = (read(path).sort_by("id")["cluster"].to_numpy() for path in (first, second))
    found = {}
    for mean in ("geometric", "arithmetic"):
        found["nmi_" + mean] = normalized_mutual_info_score(first, second, average_method=mean)
        found["ami_" + mean] = adjusted_mutual_info_score(first, second, average_method=mean)
    print(json.dumps(found))


def check(features, clusters, tensors):
    from safetensors.numpy import load_file

    table, found = read(features), read(clusters)
    assert table["key"].to_pylist() == found["key"].to_pylist(), "the same rows in the same order"
    column = table["feature"].combine_chunks()
    rows = column.flatten().to_numpy().reshape(len(column), -1).astype("float64")
    saved = {name: tensor.astype("float64") for name, tensor in load_file(tensors).items()}
    mean, projection, centroids = saved["whitening.mean"], saved["whitening.projection"], saved["centroids"]
    numpy.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5, atol=1e-5 * numpy.abs(rows).max())

    centred = rows - rows.mean(axis=0)
    covariance = centred.T @ centred / len(rows)
    values, vectors = numpy.linalg.eigh(covariance)
    kept = len(projection)
    white = projection @ covariance @ projection.T
    raised = values[-kept:][::-1] / numpy.maximum(values[-kept:][::-1], 1e-5 * values[-1])
    numpy.testing.assert_allclose(white, numpy.diag(raised), atol=1e-3)
    directions = projection / numpy.linalg.norm(projection, axis=1, keepdims=True)
    inside = numpy.linalg.norm(directions @ vectors[:, -kept:], axis=1)
    numpy.testing.assert_allclose(inside, 1.0, atol=1e-3, err_msg="directions of the largest variance")

    points = centred @ projection.T
    points /= numpy.linalg.norm(points, axis=1, keepdims=True)
    squares = ((points[:, None, :] - centroids[None]) ** 2).sum(axis=2)
    own = squares[numpy.arange(len(rows)), found["cluster"].to_numpy()]
    numpy.testing.assert_allclose(own, squares.min(axis=1), atol=1e-5)
    numpy.testing.assert_allclose(own, found["distance"].to_numpy(), atol=1e-5)


if __name__ == "__main__":
    {"agree": agree, "check": check}[sys.argv[1]](*sys.argv[2:])
