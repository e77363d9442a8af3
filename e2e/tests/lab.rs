//! The stand-ins behave like what they stand in for, so that a finding on them means something.

use tasuki_e2e::attack;
use tasuki_e2e::dockerd::Cgroups;
use tasuki_e2e::shop::Shop;

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_does_in_a_container_what_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let lab = std::path::Path::new(env!("CARGO_BIN_EXE_tasuki-lab"));
    let shop = Shop::start(directory.path(), "tsk-test-lab", [172, 31, 252], Cgroups::Host, lab).await.unwrap();
    let mined = attack::miner(shop.address).await.unwrap();
    assert!(mined.contains("pool answered: {\"id\":1"), "{mined}");
    attack::reverse_shell(shop.address).await.unwrap();
    let dropped = attack::new_binary(shop.address).await.unwrap();
    assert!(dropped.contains("usage: tasuki-lab"), "the copy ran: {dropped}");
    assert_eq!(attack::fileless(shop.address).await.unwrap(), "from memory\n");
    shop.stop().await.unwrap();
}
