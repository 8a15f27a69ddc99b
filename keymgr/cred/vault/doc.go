// Package vault takes pre-shared keys and certificates from HashiCorp Vault, over
// its HTTP API. A Vault reads KV version 2 and is a cred.Source; put a cred.Cache
// before it. A PKI takes trust anchors and certificates from PKI mounts.
//
//	vault:secret/testudo/psk/web-db       mount "secret", field "psk"
//	vault:secret/testudo/psk/web-db#key   field "key"
//
// A rotation is a new version. For Config.Overlap after it was written, the
// version before it is a second candidate, unless it was deleted or destroyed.
// Deleting the newest version withdraws the secret; older ones are not revived.
// The token needs read on MOUNT/data/… and, so that a check does not fetch the
// secret itself, on MOUNT/metadata/….
//
// For certificates the token needs update on MOUNT/sign/ROLE alone; what a mount
// trusts can be read without a token. See PKI for the references.
//
// Nobody in the IKE path may wait for a Vault that is in trouble:
//
//   - every question has one deadline (Config.Timeout), with one retry in it
//     after a 412, a 5xx or a broken connection;
//   - after three failures in a row Vault is left alone for a while that
//     doubles (the breaker), and one question at a time probes it;
//   - a 403 may mean a token that was revoked or has expired. The token is
//     looked up; if it is dead, or old enough to lack a policy that its role
//     has got since, one login is shared by all who wait, and the question is
//     asked once more.
//
// No token, SecretID or secret is in any error, log line or Stats.
//
// Limits: one address (a load balancer, or Vault Agent; a standby's redirect is
// followed); a KV mount is one path segment; the CA is read once; no Kubernetes or
// JWT login, no response-wrapped SecretID; changes are polled, not subscribed;
// private keys of certificates are made in memory, so a key manager that starts
// while Vault is away has none.
package vault
