// Package arch asserts how the parts of Testudo may depend on each other, and the
// few rules of style that a machine can check.
//
// The tables here are the ones in docs/architecture.md. To change a rule, give the
// reason there first.
package arch

// module is the prefix of our import paths.
const module = "github.com/testudo-ipsec/testudo/"

// ImportRule says which of our packages those in a folder may import. Paths are
// relative to the repository; "x/..." stands for x and all below it. The longest
// Folder that holds a package decides, and packages of that folder may always import
// each other. Test files obey the rule of their module only.
type ImportRule struct {
	Folder string
	May    []string
}

// ImportRules is the import table.
var ImportRules = []ImportRule{
	{"ipsec", nil},
	{"ipsec/mac", []string{"ipsec"}},
	{"proto", nil},
	{"keymgr", []string{"ipsec", "ipsec/mac"}},
	{"dataplane", []string{"ipsec", "ipsec/mac"}},
	{"policyd", []string{"ipsec"}},
	{"services", []string{"ipsec", "proto/...", "keymgr/...", "dataplane/...", "policyd/..."}},
	{"test", []string{"ipsec", "proto/...", "keymgr/...", "dataplane/...", "policyd/...", "services/..."}},

	// wire, suite <- ikev1, ikev2 <- engine; the two versions do not know each other.
	{"keymgr/ike/wire", []string{"ipsec"}},
	{"keymgr/ike/suite", []string{"ipsec", "ipsec/mac", "keymgr/ike/wire"}},
	{"keymgr/ike/ikev1", []string{"ipsec", "keymgr/ike", "keymgr/ike/wire", "keymgr/ike/suite", "keymgr/archive"}},
	{"keymgr/ike/ikev2", []string{"ipsec", "keymgr/ike", "keymgr/ike/wire", "keymgr/ike/suite", "keymgr/archive"}},
	{"keymgr/archive", []string{"ipsec"}},
	{"keymgr/store", []string{"ipsec"}}, // a leaf: who keeps something in it says what

	// packet, replay, ipsec/mac <- esp, ah <- sad, spd <- engine <- backend/userspace; netio is a
	// leaf. engine knows package backend, the contract, but no implementation of it.
	{"dataplane/packet", []string{"ipsec"}},
	{"dataplane/replay", []string{"dataplane/packet"}}, // for its verdicts' whys
	{"dataplane/netio", nil},
	{"dataplane/natt", []string{"ipsec", "dataplane/packet"}},
	{"dataplane/esp", []string{"ipsec", "dataplane/packet", "dataplane/replay", "ipsec/mac"}},
	{"dataplane/ah", []string{"ipsec", "dataplane/packet", "dataplane/replay", "ipsec/mac"}},
	{"dataplane/sad", []string{"ipsec", "dataplane/packet", "dataplane/replay", "dataplane/esp", "dataplane/ah"}},
	{"dataplane/spd", []string{"ipsec", "dataplane/packet"}},
	{"dataplane/engine", []string{
		"ipsec", "dataplane/packet", "dataplane/replay", "dataplane/esp", "dataplane/ah", "dataplane/natt",
		"dataplane/sad", "dataplane/spd", "dataplane/netio", "dataplane/backend",
	}},
}

// VendorRule says where a third-party module may be imported.
type VendorRule struct {
	What     string   // what operators call it
	Prefixes []string // import paths
	In       []string // folders
}

// VendorRules keep each large dependency behind one door.
var VendorRules = []VendorRule{
	{"Vault", []string{"github.com/hashicorp/vault"}, []string{"keymgr/cred/vault", "test"}},
	{"etcd", []string{"go.etcd.io/etcd"}, []string{"policyd/store/etcd", "test"}},
	{"netlink", []string{"github.com/vishvananda/netlink", "github.com/mdlayher/netlink", "github.com/jsimonetti/rtnetlink"}, []string{"dataplane/backend", "test"}},
	{"protobuf", []string{"google.golang.org/protobuf", "google.golang.org/grpc", "github.com/golang/protobuf"}, []string{"proto", "services", "test"}},
}

// LinkBan names what a program must not contain, however it would get there.
type LinkBan struct {
	Program string // folder of the main package
	Not     []string
}

// LinkBans keeps workers small: they hold no long-term secret and no store.
var LinkBans = []LinkBan{
	{"services/cmd/workerd", []string{"github.com/hashicorp/vault", "go.etcd.io/etcd"}},
}

// StandardOnly are the folders that import the standard library and nothing else.
var StandardOnly = []string{"ipsec"}

// Pure are the folders of state machines: time and packets are passed in, so they
// neither read the clock nor open sockets.
var Pure = []string{"keymgr/ike/ikev1", "keymgr/ike/ikev2"}
