package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// imagePrograms are what a machine has of this host, with the libraries they name.
var imagePrograms = []string{
	"sh", "cat", "mkdir", "env", "kill", "date", "mount", "ip", "ping", "modprobe", "sysctl", "iperf3",
	"charon-systemd", "swanctl", "iked", "ikectl",
}

// imageLibreswan are programs of the Libreswan that is unpacked beside the kernel.
var imageLibreswan = []string{"/usr/libexec/ipsec/pluto", "/usr/libexec/ipsec/whack", "/usr/libexec/ipsec/addconn"}

// imageFiles are patterns of what programs read, or load by name, beside those.
var imageFiles = []string{
	"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/protocols",
	"/usr/lib/x86_64-linux-gnu/libnss_files*", "/usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
	"/usr/lib/x86_64-linux-gnu/ossl-modules/*",
	"/usr/lib/ipsec/plugins/*",
	"/usr/lib/x86_64-linux-gnu/libsoftokn3.*", "/usr/lib/x86_64-linux-gnu/libfreebl*", // of NSS, for Libreswan
}

// imageModules are patterns of the kernel's modules, without what these need.
var imageModules = []string{
	"kernel/drivers/virtio/virtio_pci.ko", "kernel/drivers/net/virtio_net.ko",
	"kernel/arch/x86/crypto/*", "kernel/crypto/*", "kernel/lib/crypto/*",
	"kernel/net/ipv4/*", "kernel/net/ipv6/*", "kernel/net/xfrm/*", "kernel/net/key/*",
}

// usr has the four directories that are links into /usr.
var usr = regexp.MustCompile(`^/(bin|sbin|lib|lib64)/`)

// image is the contents of an initramfs, by path.
type image map[string]imageFile

type imageFile struct {
	mode uint32
	data []byte
}

const (
	modeFile      = 0o100755
	modeDirectory = 0o040755
	modeLink      = 0o120777
)

// makeImage gathers an initramfs: init, the programs, and modules of the kernel
// unpacked in a folder.
func makeImage(init, kernel string) ([]byte, error) {
	i := image{}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		i["/"+dir] = imageFile{modeLink, []byte("usr/" + dir)}
	}
	for _, dir := range []string{"/etc/ipsec.d/policies", "/var/lib/ipsec/nss", "/var/lib", "/var/tmp", "/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/usr/share",
		"/var/lib/openiked/empty", "/etc/iked/ca", "/etc/iked/certs", "/etc/iked/crls", "/etc/iked/private", "/etc/iked/pubkeys/fqdn", "/etc/iked/ocsp"} {
		i.directory(dir)
	}
	i["/var/run"] = imageFile{modeLink, []byte("../run")}
	if err := i.copy("/init", init); err != nil {
		return nil, err
	}
	var found []string
	for _, name := range imagePrograms {
		path, err := exec.LookPath(name)
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} { // not on everybody's PATH
			if err != nil {
				path, err = exec.LookPath(dir + name)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%w; `scripts/deps machines` installs it", err)
		}
		found = append(found, path)
	}
	for _, pattern := range imageFiles {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		found = append(found, paths...)
	}
	for _, path := range found {
		if err := i.copy(path, path); err != nil {
			return nil, err
		}
	}
	for _, path := range imageLibreswan {
		from := filepath.Join(kernel, "libreswan", path)
		if err := i.copy(path, from); err != nil {
			return nil, fmt.Errorf("%w; `scripts/deps machines` unpacks it", err)
		}
		found = append(found, from)
	}
	if err := i.libraries(found); err != nil {
		return nil, err
	}
	if err := i.modules(kernel); err != nil {
		return nil, err
	}
	return i.cpio(), nil
}

// copy has the content of a file at a path, through links.
func (i image) copy(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	to = usr.ReplaceAllString(to, "/usr/$1/")
	i.directory(filepath.Dir(to))
	i[to] = imageFile{modeFile, data}
	return nil
}

func (i image) directory(path string) {
	for ; path != "/"; path = filepath.Dir(path) {
		i[path] = imageFile{mode: modeDirectory}
	}
}

// libraries adds the shared libraries of programs and libraries.
func (i image) libraries(files []string) error {
	// An error is of a file that is none of these.
	out, _ := exec.Command("ldd", files...).CombinedOutput()
	libraries := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(?:\S+ => )?(/\S+) \(0x`).FindAllSubmatch(out, -1) {
		libraries[string(m[1])] = true
	}
	if len(libraries) == 0 {
		return fmt.Errorf("ldd names no library: %s", out)
	}
	for _, path := range slices.Sorted(maps.Keys(libraries)) {
		if err := i.copy(path, path); err != nil {
			return err
		}
	}
	return nil
}

// modules adds the kernel's, and the tables by which modprobe finds them.
func (i image) modules(kernel string) error {
	dirs, err := filepath.Glob(filepath.Join(kernel, "lib/modules/*"))
	if err != nil {
		return err
	}
	if len(dirs) != 1 {
		return fmt.Errorf("%d kernels in %s, want one; remove the folder and run `scripts/deps machines`", len(dirs), kernel)
	}
	needs := map[string][]string{}
	table, err := os.ReadFile(filepath.Join(dirs[0], "modules.dep"))
	if err != nil {
		return err
	}
	for in := bufio.NewScanner(bytes.NewReader(table)); in.Scan(); {
		module, others, _ := strings.Cut(in.Text(), ":")
		needs[module] = strings.Fields(others)
	}
	add := func(name string) error {
		return i.copy(filepath.Join("/usr/lib/modules", filepath.Base(dirs[0]), name), filepath.Join(dirs[0], name))
	}
	for module, others := range needs {
		if !slices.ContainsFunc(imageModules, func(pattern string) bool { ok, _ := filepath.Match(pattern, module); return ok }) {
			continue
		}
		for _, m := range append(others, module) {
			if err := add(m); err != nil {
				return err
			}
		}
	}
	tables, err := fs.Glob(os.DirFS(dirs[0]), "modules.*")
	for _, t := range tables {
		err = errors.Join(err, add(t))
	}
	return err
}

// cpio is the image in the format "newc" of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
func (i image) cpio() []byte {
	var b bytes.Buffer
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	entry := func(name string, f imageFile) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			0, f.mode, 0, 0, 1, 0, len(f.data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad()
		b.Write(f.data)
		pad()
	}
	for _, path := range slices.Sorted(maps.Keys(i)) { // a directory is before what is in it
		entry(path[1:], i[path])
	}
	entry("TRAILER!!!", imageFile{})
	return b.Bytes()
}
