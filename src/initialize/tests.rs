use super::filters::Patches;
use super::*;
use tch::Kind;

fn affine(outputs: i64, inputs: i64) -> Affine {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    Affine { name: "fc6", weight: zeros(&[outputs, inputs]), bias: zeros(&[outputs]), statistics: None, sweep: None }
}

/// 90 rows in three groups, and the group of each.
fn groups() -> (Tensor, Vec<i64>) {
    let groups: Vec<i64> = (0..90).map(|row| row % 3).collect();
    let centers = crate::cluster::samples::normal(5, 3, 12) * 4.0;
    let noise = crate::cluster::samples::normal(6, 90, 12) * 5e-4; // below what whitening blows up
    (centers.index_select(0, &Tensor::from_slice(&groups)) + noise + 7.0, groups)
}

#[test]
fn each_centroid_answers_to_one_group_of_patches() -> Result<()> {
    let (rows, groups) = groups();
    let layer = affine(3, 12);
    let found = Patches::of(rows.shallow_clone()).into_filters(&layer, Method::Kmeans, 4)?;
    assert_eq!(found, 3);
    let centred = &rows - rows.mean_dim(0, true, Kind::Float);
    let winners = Vec::<i64>::try_from(centred.matmul(&layer.weight.tr()).argmax(1, false)).expect("a vector");
    for (row, winner) in winners.iter().enumerate() {
        assert_eq!(*winner, winners[row % 3], "rows of group {} go together", groups[row]);
    }
    assert!(winners[0] != winners[1] && winners[1] != winners[2] && winners[0] != winners[2], "{winners:?}");
    Ok(())
}

#[test]
fn filters_beyond_what_patches_give_stay() -> Result<()> {
    let (rows, _) = groups();
    let layer = affine(46, 12);
    let _ = layer.weight.shallow_clone().fill_(3.0);
    assert_eq!(Patches::of(rows.shallow_clone()).into_filters(&layer, Method::Kmeans, 4)?, 0, "92 patches would do");
    assert_eq!(layer.weight, Tensor::full([46, 12], 3.0, (Kind::Float, Device::Cpu)));
    assert_eq!(Patches::of(rows).into_filters(&layer, Method::Pca, 4)?, 12, "as many directions as entries");
    assert_eq!(layer.weight.narrow(0, 12, 34), Tensor::full([34, 12], 3.0, (Kind::Float, Device::Cpu)));
    Ok(())
}
