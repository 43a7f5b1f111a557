use super::errors::assert_said;

#[test]
fn wrong_marks() {
    assert_said(&[
        (
            "network: { mark: { own: 0 } }",
            "1: network.mark.own: \"0\" is out of bounds: write a whole number from 1 to 4294967295",
        ),
        (
            "network: { mark: { mask: what } }",
            "1: network.mark.mask: \"what\" is not a whole number: write a whole number from 1 to 4294967295",
        ),
        (
            "network:\n  mark:\n    own: 0x136\n",
            "3: network.mark.own: the mark 0x136 has bits outside of the mask 0xff: \
             write a mask that holds every bit of the mark",
        ),
        (
            "network:\n  mark:\n    mask: 0xff00\n",
            "3: network.mark.mask: the mark 0x36 has bits outside of the mask 0xff00: \
             write a mask that holds every bit of the mark",
        ),
        (
            "network:\n  intercept: [10.96.0.10]\n  mark: { own: 0x3600, mask: 0xff00 }\n",
            "3: network.mark.mask: the mark 0x35 has bits outside of the mask 0xff00: \
             write a mask that holds every bit of the mark",
        ),
        (
            "network:\n  mark:\n    intercept: 0x135\n",
            "3: network.mark.intercept: the mark 0x135 has bits outside of the mask 0xff: \
             write a mask that holds every bit of the mark",
        ),
        (
            "network:\n  mark:\n    intercept: 0x36\n",
            "3: network.mark.intercept: 0x36 is the mark of our own queries and of those to intercept: \
             write two different marks",
        ),
        (
            "network:\n  intercept: [10.96.0.10]\n  mark:\n    own: 0x35\n",
            "4: network.mark.own: 0x35 is the mark of our own queries and of those to intercept: \
             write two different marks",
        ),
    ]);
}

#[test]
fn wrong_links_and_flags() {
    assert_said(&[
        (
            "network: { upstream_notrack: on }",
            "1: network.upstream_notrack: \"on\" is not known here: write true or false",
        ),
        (
            "network: { address_on: a-name-of-16-byte }",
            "1: network.address_on: \"a-name-of-16-byte\" is no name of a link: \
             write none, or a name of at most 15 bytes such as nodelocaldns",
        ),
        (
            "network: { address_on: a/b }",
            "1: network.address_on: \"a/b\" is no name of a link: \
             write none, or a name of at most 15 bytes such as nodelocaldns",
        ),
        (
            "network: { address_on: \"dns%d\" }",
            "1: network.address_on: \"dns%d\" is no name of a link: \
             write none, or a name of at most 15 bytes such as nodelocaldns",
        ),
        (
            "network: { address_on: \"dns\\x07\" }",
            "1: network.address_on: \"dns\\u{7}\" is no name of a link: \
             write none, or a name of at most 15 bytes such as nodelocaldns",
        ),
        (
            "network: { accept_untracked: true }",
            "1: network.accept_untracked: has nothing to accept, because everything is tracked: \
             set network.notrack to true as well, or leave this out",
        ),
    ]);
}

#[test]
fn what_is_no_cluster_ip_is_not_intercepted() {
    let fix = "write the ClusterIP of the cluster's DNS, such as 10.96.0.10";
    for address in ["127.0.0.1", "::1", "0.0.0.0", "169.254.20.10", "fe80::1", "224.0.0.1", "255.255.255.255"]
    {
        let text = format!("network: {{ intercept: [\"{address}\"] }}");
        let said = format!("1: network.intercept[0]: {address} is not the ClusterIP of a Service: {fix}");
        assert_said(&[(&text, &said)]);
    }
    assert_said(&[
        (
            "network: { intercept: [kube-dns] }",
            "1: network.intercept[0]: \"kube-dns\" is not an IP address: write one such as 10.0.0.7 or fd00::7",
        ),
        (
            "listen: [\"10.96.0.10:53\"]\nnetwork: { intercept: [10.96.0.10] }",
            "2: network.intercept[0]: 10.96.0.10:53 is listen[0] as well: write it in one of the two",
        ),
        (
            "network: { intercept: [10.96.0.10, 10.96.0.10] }",
            "1: network.intercept[1]: repeats network.intercept[0] in line 1: keep one of the two",
        ),
    ]);
}
