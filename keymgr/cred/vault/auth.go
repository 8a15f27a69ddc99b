package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Auth is a way to get a token: TokenFile, AppRole or Cert.
type Auth interface {
	check() error
	// login returns a secret whose Auth is set, and what it used that must not
	// be shown. The client has no token.
	login(ctx context.Context, c *api.Client) (s *api.Secret, used string, err error)
	// ours reports whether login makes a token, which is ours to revoke then.
	ours() bool
}

// TokenFile reads a token that somebody else keeps fresh, such as Vault Agent.
// The file is read again whenever the token stops working.
type TokenFile struct{ Path string }

// AppRole logs in with a RoleID and a SecretID, which is read from its file at
// each login.
type AppRole struct {
	Mount        string // default "approle"
	RoleID       string
	SecretIDFile string // empty for a role that is bound in another way
}

// Cert logs in with the client certificate of the TLS connection.
type Cert struct {
	Mount    string // default "cert"
	Role     string // empty: Vault tries all
	CertFile string
	KeyFile  string
}

func (a TokenFile) ours() bool { return false }
func (a AppRole) ours() bool   { return true }
func (a Cert) ours() bool      { return true }

func (a TokenFile) check() error {
	if a.Path == "" {
		return errors.New("vault: auth: the token file has no path")
	}
	return nil
}

func (a AppRole) check() error {
	if a.RoleID == "" {
		return errors.New("vault: auth: the AppRole has no roleID")
	}
	return checkMount(a.Mount)
}

func (a Cert) check() error {
	if a.CertFile == "" || a.KeyFile == "" {
		return errors.New("vault: auth: want both a certificate file and a key file")
	}
	return checkMount(a.Mount)
}

// checkMount refuses what a reference could not name either.
func checkMount(mount string) error {
	if mount == "" {
		return nil
	}
	if _, err := cred.ParseRef(cred.SchemeVault + ":" + mount + "/login"); err != nil {
		return fmt.Errorf("vault: auth: bad mount: %w", err)
	}
	return nil
}

func (a TokenFile) login(ctx context.Context, c *api.Client) (*api.Secret, string, error) {
	token, err := readSecretFile(a.Path)
	if err != nil {
		return nil, "", err
	}
	c.SetToken(token)
	self, err := c.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return nil, token, err
	}
	ttl, ttlErr := self.TokenTTL()
	renewable, renewErr := self.TokenIsRenewable()
	if ttlErr != nil || renewErr != nil {
		return nil, token, errNotVault
	}
	return &api.Secret{Auth: &api.SecretAuth{
		ClientToken:   token,
		LeaseDuration: int(ttl.Seconds()),
		Renewable:     renewable,
	}}, token, nil
}

func (a AppRole) login(ctx context.Context, c *api.Client) (*api.Secret, string, error) {
	body := map[string]any{"role_id": a.RoleID}
	id := ""
	if a.SecretIDFile != "" {
		var err error
		if id, err = readSecretFile(a.SecretIDFile); err != nil {
			return nil, "", err
		}
		body["secret_id"] = id
	}
	s, err := c.Logical().WriteWithContext(ctx, "auth/"+or(a.Mount, "approle")+"/login", body)
	return s, id, err
}

func (a Cert) login(ctx context.Context, c *api.Client) (*api.Secret, string, error) {
	body := map[string]any{}
	if a.Role != "" {
		body["name"] = a.Role
	}
	s, err := c.Logical().WriteWithContext(ctx, "auth/"+or(a.Mount, "cert")+"/login", body)
	return s, "", err
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// maxCredential bounds a token or SecretID; a batch token is the longest.
const maxCredential = 8 << 10

// readSecretFile reads a token or SecretID: one line, in a file that others
// cannot read (a group may: Vault Agent writes mode 0640).
func readSecretFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", cred.Errorf(cred.Denied, "", "reading what to log in with: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", cred.Errorf(cred.Denied, "", "reading what to log in with: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return "", cred.Errorf(cred.Denied, "", "%s has mode %04o, open to everybody: chmod o= it, and replace what is in it", name, perm)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	defer clear(text)
	if err != nil {
		return "", cred.Errorf(cred.Denied, "", "reading what to log in with: %w", err)
	}
	line := string(bytes.TrimSpace(text))
	if line == "" || len(text) > maxCredential || strings.ContainsAny(line, "\r\n") {
		return "", cred.Errorf(cred.Denied, "", "%s has %d octets, want one line with a token or SecretID", name, len(text))
	}
	return line, nil
}
