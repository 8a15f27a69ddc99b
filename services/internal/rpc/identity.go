package rpc

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Role is what a caller is. It comes from the URI SAN of the caller's
// certificate, testudo://<role>/<name>, or is RoleLocal over a unix socket.
type Role string

const (
	RolePolicyd  Role = "policyd"
	RoleKeymgrd  Role = "keymgrd"
	RoleWorker   Role = "worker"
	RoleOperator Role = "operator"
	// RoleLocal is a process on this host that may open the socket: root, or
	// the user that the daemon runs as.
	RoleLocal Role = "local"
)

// Roles that a certificate can carry.
var Roles = []Role{RolePolicyd, RoleKeymgrd, RoleWorker, RoleOperator}

// Caller is who calls. Name is the node's name for workers.
type Caller struct {
	Role Role
	Name string
}

func (c Caller) String() string { return string(c.Role) + "/" + c.Name }

// Is reports whether the caller may speak for the name: a certificate binds
// it, a local process may say what it likes.
func (c Caller) Is(name string) bool { return c.Role == RoleLocal || c.Name == name }

// URI is the SAN that stands for a caller in a certificate.
func (c Caller) URI() string { return "testudo://" + string(c.Role) + "/" + c.Name }

// CallerOf tells who calls in a server's handler.
func CallerOf(ctx context.Context) (Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, status.Error(codes.Unauthenticated, "the connection carries no identity")
	}
	switch a := p.AuthInfo.(type) {
	case credentials.TLSInfo:
		if len(a.State.VerifiedChains) == 0 {
			return Caller{}, status.Error(codes.Unauthenticated, "no verified client certificate")
		}
		return callerOfCert(a.State.VerifiedChains[0][0])
	case localInfo:
		return Caller{Role: RoleLocal, Name: fmt.Sprintf("uid-%d", a.uid)}, nil
	}
	return Caller{}, status.Error(codes.Unauthenticated, "the connection is neither mutual TLS nor a unix socket")
}

func callerOfCert(cert *x509.Certificate) (Caller, error) {
	for _, u := range cert.URIs {
		if u.Scheme != "testudo" {
			continue
		}
		c := Caller{Role: Role(u.Host), Name: strings.TrimPrefix(u.Path, "/")}
		if slices.Contains(Roles, c.Role) && c.Name != "" {
			return c, nil
		}
	}
	return Caller{}, status.Errorf(codes.Unauthenticated, "certificate %q has no URI SAN of the form testudo://<role>/<name>", cert.Subject.CommonName)
}

// CallerOfFile is the identity in a PEM file's first certificate.
func CallerOfFile(path string) (Caller, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Caller{}, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return Caller{}, fmt.Errorf("%s holds no PEM certificate", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Caller{}, fmt.Errorf("%s: %w", path, err)
	}
	return callerOfCert(cert)
}

// localInfo is the identity behind a unix socket.
type localInfo struct {
	credentials.CommonAuthInfo
	uid uint32
}

func (localInfo) AuthType() string { return "local" }

// localCredentials accepts unix sockets only and learns the caller's user from
// the kernel (SO_PEERCRED).
type localCredentials struct{ allow func(uid uint32) bool }

func (c localCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("local credentials need a unix socket, got %s", conn.RemoteAddr().Network())
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, nil, err
	}
	if credErr != nil {
		return nil, nil, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	if !c.allow(cred.Uid) {
		return nil, nil, fmt.Errorf("user %d may not use this socket; run as root or as the daemon's user", cred.Uid)
	}
	q, err := newQuickConn(uc)
	if err != nil {
		return nil, nil, err
	}
	return q, localInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, cred.Uid}, nil
}

func (c localCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("local credentials need a unix socket, got %s", conn.RemoteAddr().Network())
	}
	q, err := newQuickConn(uc)
	if err != nil {
		return nil, nil, err
	}
	return q, localInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, 0}, nil
}

func (localCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "local"}
}
func (c localCredentials) Clone() credentials.TransportCredentials { return c }
func (localCredentials) OverrideServerName(string) error           { return nil }
