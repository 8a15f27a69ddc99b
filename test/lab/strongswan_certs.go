package lab

import (
	"fmt"
	"path/filepath"
	"strings"
)

// writeCerts puts the certificates and keys of a connection where swanctl's
// --load-creds looks for them.
func (s *StrongSwan) writeCerts(c SwanConn) {
	write := func(folder, name, content string) { s.node.WriteFile(filepath.Join(folder, name), content) }
	if c.Cert != nil {
		leaf, rest, _ := strings.Cut(c.Cert.Chain, "-----END CERTIFICATE-----\n")
		write("x509", c.certFile(), leaf+"-----END CERTIFICATE-----\n")
		write("private", c.Name+".key", c.Cert.Key)
		for i, between := range strings.SplitAfter(rest, "-----END CERTIFICATE-----\n") {
			if between != "" {
				write("x509ca", fmt.Sprintf("%s-%d.pem", c.Name, i), between)
			}
		}
	}
	for i, ca := range c.CAs {
		write("x509ca", fmt.Sprintf("%s-ca-%d.pem", c.Name, i), ca.PEM())
	}
	for i, crl := range c.CRLs {
		write("x509crl", fmt.Sprintf("%s-%d.pem", c.Name, i), crl)
	}
}

func (c SwanConn) certFile() string { return c.Name + ".pem" }

func authOf(certificates bool) string {
	if certificates {
		return "pubkey"
	}
	return "psk"
}
