package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/broker/config/schema"
)

// Each row is one file and everything that is said about it, hints in brackets. In
// most, the part in question stands on line 2.
func TestProblems(t *testing.T) {
	root := func(inner string) string { return "<secsh-broker>\n" + inner + "</secsh-broker>" }
	general := func(inner string) string { return root("<general>" + inner + "</general>") }
	defaults := func(inner string) string { return root("<default-settings>" + inner + "</default-settings>") }
	profile := func(inner string) string {
		return root(`<profiles><profile id="p" host="h">` + inner + "</profile></profiles>")
	}
	rules := func(inner string) string { return root("<filter-engine>" + inner + "</filter-engine>") }
	rule := func(attrs string) string { return rules("<rule " + attrs + "/>") }

	tests := []struct {
		name string
		in   string
		want []string // "line:col: text" or "line:col: text [hint]", compared from the start
	}{
		// the schema
		{"other root", "<configuration/>", []string{"1:1: configuration: this is not a broker configuration [the root element is secsh-broker]"}},
		{"other doctype", "<!DOCTYPE html><secsh-broker/>", []string{"1:1: the DOCTYPE is for html"}},
		{"unknown element", root("<profile/>"), []string{"2:1: profile: secsh-broker cannot hold an element profile [did you mean profiles?]"}},
		{"element elsewhere", defaults("<tunnel/>"), []string{"2:19: tunnel: default-settings cannot hold an element tunnel [it belongs in static-tunnels]"}},
		{"element nowhere", profile("<nothing-like-it/>"), []string{"2:36: nothing-like-it: profile cannot hold an element nothing-like-it [elements: hostkey, "}},
		{"child of an empty element", rules(`<rule action="BLOCK"><x/></rule>`), []string{"2:37: x: rule cannot hold an element x [it has no elements]"}},
		{"unknown attribute", rule(`action="BLOCK" whatever="1"`), []string{"2:37: rule: whatever is not an attribute of rule [attributes: application, host,"}},
		{"attribute in other case", rule(`Action="BLOCK"`), []string{"2:22: rule: Action is not an attribute of rule [did you mean action?]"}},
		{"attribute of something else", rule(`action="TUNNEL" profile="p"`), []string{"2:38: rule: profile is not an attribute of rule [did you mean profile-id?]"}},
		{"namespace declaration", `<secsh-broker xmlns="urn:x"/>`, []string{"1:15: secsh-broker: xmlns is not an attribute of secsh-broker"}},
		{"missing attribute", rule(`host="x"`), []string{`2:16: rule: attribute action is missing [add action="DIRECT|BLOCK|TUNNEL|FTP-TUNNEL|FTP-PROXY"]`}},
		{"missing attributes", root("<profiles><profile/></profiles>"), []string{"2:11: profile: attribute id is missing", "2:11: profile: attribute host is missing"}},
		{"missing yes/no", general("<strict-host-key-checking/>"), []string{
			`2:10: strict-host-key-checking: attribute enable is missing [add enable="yes|no"]`, "2:10: warning: strict-host-key-checking: deprecated"}},
		{"second element", root("<profiles/>\n<profiles/>"), []string{"3:1: profiles: secsh-broker holds a second profiles, the first is at 2:1"}},
		{"order of default-settings", defaults("<macs/><ciphers/>"), []string{"2:26: ciphers: ciphers must stand before macs"}},
		{"any order of profiles", profile(`<password file="/x"/><ciphers/>`), nil},
		{"text", rules("\n  block all\n"), []string{"3:3: filter-engine: text is not allowed here"}},
		{"cdata", rules("<![CDATA[x]]>"), []string{"2:25: filter-engine: text is not allowed here"}},
		{"text on both sides", rules("a" + block + "b"), []string{"2:16: filter-engine: text", "2:39: filter-engine: text"}},
		{"neither yes nor no", rule(`action="BLOCK" pseudo-ip="true"`), []string{`2:48: rule: pseudo-ip: "true" is neither yes nor no [write yes or no]`}},
		{"empty yes/no", rule(`action="BLOCK" pseudo-ip=""`), []string{`2:48: rule: pseudo-ip: "" is neither`}},
		{"name of the feature", rule(`action="FTP-SFTP" profile-id="p"`), []string{`2:30: rule: action: "FTP-SFTP" is not one of DIRECT, BLOCK, TUNNEL, FTP-TUNNEL, FTP-PROXY [FTP-SFTP conversion is called FTP-PROXY]`, `2:52: rule: there is no profile "p"`}},
		{"words of firewalls", rules(`<rule action="Accept"/><rule action="deny"/>`), []string{`2:30: rule: action: "Accept" is not one of DIRECT, BLOCK, TUNNEL, FTP-TUNNEL, FTP-PROXY [ACCEPT is called DIRECT]`, `2:53: rule: action: "deny" is not one of DIRECT, BLOCK, TUNNEL, FTP-TUNNEL, FTP-PROXY [DENY is called BLOCK]`}},
		{"empty action", rule(`action=""`), []string{`2:30: rule: action: "" is not one of`}},
		{"number too large", rule(`action="TUNNEL" hostname-from-app="yes" destination-port="65536"`), []string{`2:80: rule: destination-port: "65536" is not a number from 1 to 65535`}},
		{"no number", profile(`<idle-timeout time="5s"/>`), []string{`2:56: idle-timeout: time: "5s" is not a number from 0 to 3153600000 [write seconds, without a unit]`}},
		{"negative number", profile(`<idle-timeout time="-1"/>`), []string{`2:56: idle-timeout: time: "-1" is not a number`}},
		{"number beyond all bounds", profile(`<idle-timeout time="99999999999999999999"/>`), []string{`2:56: idle-timeout: time: "99999999999999999999" is not a number`}},
		{"crash policy", root(`<filter-engine crash-policy="ajar"/>`), []string{`2:30: filter-engine: crash-policy: "ajar" is not one of closed, open`}},
		{"user brokers", root(`<filter-engine user-brokers="own"/>`), []string{`2:30: filter-engine: user-brokers: "own" is neither yes nor no`}},
		{"uids", root(`<filter-engine capture-users="1000,ann,5-4,4294967295,"/>`), []string{`2:31: filter-engine: capture-users: a name is empty`,
			`2:31: filter-engine: capture-users: "ann" is neither a uid nor a range of uids [write it as`, `2:31: filter-engine: capture-users: "5-4" is`, `2:31: filter-engine: capture-users: "4294967295" is`}},
		{"root among the uids", root(`<filter-engine capture-users="0-9"/>`), []string{`2:31: filter-engine: capture-users: "0-9" has root, uid 0, in it [write capture-root="yes"]`}},
		{"all errors of a file", "<secsh-broker>\n<filter-engine>\n<rule action='X'/>\n<rul/>\n<rule action='BLOCK' host='(' ports='9-1'/>\n</filter-engine>\n<profiles/>\n</secsh-broker>", []string{
			`3:15: rule: action: "X"`, "4:1: rul: filter-engine cannot", "5:28: rule: host:", "5:38: rule: wrong ports", "7:1: profiles: profiles must stand before filter-engine"}},
		{"the schema up to a syntax error", "<secsh-broker>\n<filter-engine>\n<rule acton='X'/>\n<rule host='('/>\n</filter-engin>\n<nothing/>", []string{
			"3:7: rule: acton", "4:1: rule: attribute action is missing", "5:1: filter-engine: </filter-engin> stands where"}},

		// variables
		{"variable that is not set", rule(`action="TUNNEL" profile-id="$NONE" hostname-from-app="yes"`), []string{"2:50: warning: rule: variable NONE in profile-id is not set and stands for nothing"}},
		{"variable without end", profile(`<hostkey file="&lt;x${HOME"/>`), []string{"2:56: hostkey: file: a variable has no name or no closing brace [write ${NAME}"}},
		{"variable in a pattern", rule(`action="BLOCK" application="%D/x"`), []string{"2:50: warning: rule: variables are not expanded in the regular expression application"}},
		{"number from a variable", root(`<profiles><profile id="p" host="h" port="${NONE:-22}"/></profiles>`), nil},
		{"wrong number from a variable", root(`<profiles><profile id="p" host="h" port="$lower"/></profiles>`), []string{`2:42: profile: port: "l" is not a number`}},

		// general
		{"FIPS", general(`<crypto-lib mode="fips"/>`), []string{"2:28: crypto-lib: FIPS mode is asked for"}},
		{"no FIPS", general(`<crypto-lib mode="Standard"/><crypto-lib/>`), []string{"2:39: crypto-lib: general holds a second"}},
		{"directory beside the usual one", general(`<user-config-directory path="%User_Config_Directory%-2/$U"/>`), nil},
		{"that variable elsewhere", profile(`<hostkey file="${USER_CONFIG_DIRECTORY}/k"/>`), []string{"2:51: warning: hostkey: variable USER_CONFIG_DIRECTORY in file is not set"}},
		{"unknown variable in the directory", general(`<user-config-directory path="/$NONE"/>`), []string{"2:39: warning: user-config-directory: variable NONE in path is not set"}},
		{"variable without end in the directory", general(`<user-config-directory path="/${U"/>`), []string{"2:40: user-config-directory: path: a variable has no name"}},
		{"relative directory", general(`<user-config-directory path="x"/>`), []string{`2:39: user-config-directory: path: "x" is not absolute`}},
		{"default directory", general(`<user-config-directory path="%USER_CONFIG_DIRECTORY%"/>`), nil},
		{"directory of keys", general(`<known-hosts path="/"/><known-hosts directory="/etc/passwd"/><known-hosts file="/"/>`), []string{"2:57: warning: known-hosts: directory: /etc/passwd is a file", `2:90: known-hosts: file: / is a directory [write directory="..."]`}},
		{"certificates", general(`<cert-validation><ca-certificate name="x">abc</ca-certificate><key-store type="software"/></cert-validation>`), []string{"2:10: warning: cert-validation: read, but not acted on"}},
		{"bad certificates", general(`<cert-validation max-ldap-response-length="513"/>`), []string{"2:10: warning: cert-validation:", "2:53: cert-validation: max-ldap-response-length:"}},
		{"permissions", general(`<file-access-control enable="yes"/>`), nil},
		{"remarks come once", profile(`<remote-environment><environment name="a"/><environment name="b"/></remote-environment>`), []string{"2:56: warning: environment: read, but not acted on"}},
		{"keys that are not read", general(`<key-stores><key-store type="pkcs11" init="dll(x),slots(all)"/><key-store type="mscapi"/></key-stores>`), []string{
			"2:39: key-store: keys of type pkcs11 cannot be used here [give the token's keys to an agent: ssh-add -s LIBRARY]", "2:90: key-store: keys of type mscapi cannot be used here [it exists on Windows"}},
		{"software keys", general(`<key-stores><key-store type="software" init="key_files(a.pub, a)"/><key-store type="software" init="directory(path(/k))"/></key-stores>`), nil},
		{"software keys that are none", general(`<key-stores><key-store type="software" init="key_files(a)"/><key-store type="software"/></key-stores>`), []string{
			`2:55: key-store: init: "key_files(a)" names no keys [write key_files(PUBLIC,PRIVATE) or`, `2:70: warning: key-store: without init it names no keys`}},

		// settings
		{"prompt for the user", root(`<default-settings user=""/>`), nil},
		{"prompt for the user of a profile", root(`<profiles><profile id="p" host="h" user="*"/></profiles>`), nil},
		{"user with a control character", root(`<profiles><profile id="p" host="h" user="a&#10;b"/></profiles>`), []string{`2:42: profile: user: user "a\nb" has a control character`}},
		{"list in one", profile(`<ciphers><cipher name="a,b"/></ciphers>`), []string{`2:59: cipher: "a,b" is not the name of one algorithm`}},
		{"empty name", profile(`<macs><mac name=""/></macs>`), []string{`2:53: mac: "" is not the name`}},
		{"name twice", profile(`<kexs><kex name="a"/><kex name="a"/></kexs>`), []string{"2:68: warning: kex: a stands twice"}},
		{"no method", profile(`<authentication-methods/>`), nil},
		{"no usable method", profile(`<authentication-methods><auth-gssapi/><authentication-method name="hostbased"/></authentication-methods>`), []string{
			"2:36: authentication-methods: none of these methods can be used",
			"2:60: warning: auth-gssapi: read, but not acted on", "2:74: warning: authentication-method: hostbased: read, but not acted on"}},
		{"method twice", profile(`<authentication-methods><auth-publickey/><authentication-method name="publickey"/></authentication-methods>`), []string{"2:77: warning: authentication-method: publickey stands twice"}},
		{"method of servers", profile(`<authentication-methods><auth-publickey/><authentication-method name="certificate"/></authentication-methods>`), []string{"2:106: authentication-method: certificate is a method of servers"}},
		{"method of users", profile(`<server-authentication-methods><authentication-method name="password"/></server-authentication-methods>`), []string{"2:96: authentication-method: password is a method of users"}},
		{"certificate required", profile(`<server-authentication-methods><auth-server-certificate/></server-authentication-methods>`), nil},
		{"certificate required, old form", profile(`<server-authentication-methods><authentication-method name="certificate"/></server-authentication-methods>`), nil},
		{"certificate allowed", profile(`<server-authentication-methods><auth-server-certificate/><auth-server-publickey/></server-authentication-methods>`), nil},
		{"how keys are chosen", profile(`<authentication-methods><auth-publickey signature-algorithms="rsa-sha2-512, ssh-ed25519"><key-selection policy="interactive-shy"><public-key type="certificate"/><issuer-name match-server-certificate="yes"/></key-selection></auth-publickey></authentication-methods>`), nil},
		{"issuer of X.509", profile(`<authentication-methods><auth-publickey><key-selection><issuer-name name="CN=x"/><issuer-name/></key-selection></auth-publickey></authentication-methods>`), []string{
			"2:110: warning: issuer-name: no OpenSSH certificate has an issuer of this name", "2:117: issuer-name: no issuer is named"}},
		{"no signature algorithm", profile(`<authentication-methods><auth-publickey signature-algorithms=" , "/></authentication-methods>`), []string{`2:98: auth-publickey: signature-algorithms: " , " names none`}},
		{"no policy", profile(`<server-authentication-methods><auth-server-publickey policy="lax"/></server-authentication-methods>`), []string{`2:98: auth-server-publickey: policy: "lax" is not one of strict, ask, trust-on-first-use, tofu, advisory`}},
		{"two identities in one", profile(`<user-identities><identity file="a" id="b"/></user-identities>`), []string{"2:53: identity: an identity has exactly one"}},
		{"empty identity", profile(`<user-identities><identity file=""/></user-identities>`), []string{"2:69: identity: file is empty"}},
		{"identity by hash", profile(`<user-identities><identity hash="#1"/><identity id="0123456789abcdef"/></user-identities>`), []string{"2:69: identity: hash: a key's hash is SHA256:"}},
		{"two passwords in one", profile(`<password file="a" string="b"/>`), []string{"2:36: password: a password has exactly one"}},
		{"no password", profile(`<password/>`), []string{"2:36: password: a password has exactly one"}},
		{"empty password", profile(`<password string=""/>`), []string{"2:36: password: the password is empty"}},
		{"host key inside", profile(`<hostkey>AAAA</hostkey>`), []string{"2:45: hostkey: neither a public key nor the base64 of one [write the base64"}},
		{"host key twice", profile(`<hostkey file="x">AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f</hostkey>`), []string{"2:54: hostkey: the host key is given twice"}},
		{"host key in lines", profile("<hostkey>\n AAAAC3NzaC1lZDI1NTE5AAAAIAABAgME\n BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n</hostkey>"), nil},
		{"no host key", profile(`<hostkey/>`), []string{"2:36: hostkey: no host key is named"}},
		{"transports", `<secsh-broker><default-settings transports="0"/><profiles><profile id="p" host="h" transports="17"/><profile id="q" host="h" transports="two"/></profiles></secsh-broker>`, []string{
			`1:45: default-settings: transports: "0" is not a number from 1 to 16`, `1:96: profile: transports: "17" is not a number from 1 to 16`,
			`1:138: profile: transports: "two" is not a number from 1 to 16`}},
		{"proxy", defaults(`<proxy ruleset="direct:///; &lt;x"/>`), []string{`2:47: proxy: ruleset: "<x" has no ://`}},
		{"no proxy", defaults(`<proxy ruleset=" ; "/>`), nil},
		{"proxy and gateway", root(`<profiles><profile id="q" host="h"/><profile id="p" host="h" gateway-profile="q"><proxy ruleset="socks://p/"/></profile></profiles>`), []string{"2:82: warning: proxy: the proxy of a profile with a gateway-profile is not used"}},
		{"settings without effect", profile(`<compression name="ZLIB"/><exclusive-connection enable="yes"/><forwards><forward type="x11" state="on"/></forwards>`), []string{
			"2:49: warning: compression: name: read, but not acted on", "2:128: warning: forward: state: read, but not acted on"}},
		{"settings that ask for nothing", profile(`<compression name="none"/><exclusive-connection enable="NO"/><forwards><forward type="x11" state="off"/></forwards><server-banners visible="no"/>`), nil},
		{"settings of windows", defaults(`<sftpg3-mode anything="x"><inside/></sftpg3-mode><quiet-mode enable="yes"/><address-family type="inet6"/>`), []string{
			"2:19: warning: sftpg3-mode: read, but not acted on", "2:80: warning: quiet-mode: enable: read"}},
		{"gui", root(`<gui hide="yes"/>`), []string{"2:1: warning: gui: read, but not acted on"}},

		// profiles
		{"second id", root(`<profiles><profile id="p" host="h"/><profile id="p" host="i"/></profiles>`), []string{`2:50: profile: there is a second profile "p", the first is at 2:24`}},
		{"empty id", root(`<profiles><profile id="" host="h"/></profiles>`), []string{"2:24: profile: id is empty"}},
		{"second name", root(`<profiles><profile id="p" name="n" host="h"/><profile id="q" name="n" host="i"/></profiles>`), []string{`2:68: warning: profile: there is a second profile with the name "n", the first is at 2:33`}},
		{"host with a space", root(`<profiles><profile id="p" host="a b"/></profiles>`), []string{`2:33: profile: host "a b" has the character ' '`}},
		{"host that is an option", root(`<profiles><profile id="p" host="-oProxyCommand=x"/></profiles>`), []string{`2:33: profile: host "-oProxyCommand=x" begins with a hyphen`}},
		{"hosts of the program", root(`<profiles><profile id="p" host="*"/><profile id="q" host=""/></profiles>`), nil},
		{"port 0", root(`<profiles><profile id="p" host="h" port="0"/></profiles>`), []string{`2:42: profile: port: "0"`}},
		{"other protocol", root(`<profiles><profile id="p" host="h" protocol="telnet"/></profiles>`), []string{`2:46: profile: protocol: "telnet" is not one of secsh2`}},
		{"connect at start", root(`<profiles><profile id="p" host="h" connect-on-startup="yes"/><profile id="q" host="*" connect-on-startup="yes"/></profiles>`), []string{
			"2:107: profile: connect-on-startup: the profile names no host to connect to"}},
		{"several hosts", root(`<profiles><profile id="p" host="a, b:2222,[fd00::1],[fd00::2]:3,fd00::3"/><profile id="q" host="fd00::1"/></profiles>`), nil},
		{"several hosts, wrong", root(`<profiles><profile id="p" host="a,"/><profile id="q" host="a,*"/><profile id="r" host="a:0,b"/><profile id="s" host="a,[b]x"/></profiles>`), []string{
			`2:33: profile: no host [write the servers as "a,b:2222`, "2:60: profile: host \"*\"", `2:88: profile: host "a:0": "0" is not a port`, `2:118: profile: host "[b]x": an address in brackets`}},
		{"too many hosts", root(`<profiles><profile id="p" host="` + strings.Repeat("a,", 16) + `a"/></profiles>`), []string{"2:33: profile: host: 17 servers, at most 16"}},
		{"unknown gateway", root(`<profiles><profile id="gate" host="h"/><profile id="p" host="h" gateway-profile="gat"/></profiles>`), []string{`2:82: profile: gateway-profile: there is no profile "gat" [did you mean gate?]`}},
		{"gateway by name", root(`<profiles><profile id="g1" name="front" host="h"/><profile id="p" host="h" gateway-profile="front"/></profiles>`), []string{`2:93: profile: gateway-profile: there is no profile "front" [profiles are referred to by their id: "g1"]`}},
		{"gateway without host", root(`<profiles><profile id="g" host="*"/><profile id="p" host="h" gateway-profile="g"/></profiles>`), []string{`2:79: profile: gateway-profile: profile "g" names no host to go through`}},
		{"gateway to itself", root(`<profiles><profile id="p" host="h" gateway-profile="p"/></profiles>`), []string{"2:53: profile: gateway-profile: profiles lead in a circle: p -> p"}},
		{"circle", root("<profiles>\n<profile id='x' host='h' gateway-profile='a'/>\n<profile id='a' host='h' gateway-profile='b'/>\n<profile id='b' host='h' gateway-profile='a'/></profiles>"), []string{"4:43: profile: gateway-profile: profiles lead in a circle: a -> b -> a"}},

		// rules
		{"pattern after references", rule(`action="BLOCK" host="&lt;&#x41;("`), []string{"2:53: rule: host: "}},
		{"pattern of the program", rule(`action="BLOCK" application="*x"`), []string{"2:50: rule: application: "}},
		{"pattern of the address", rule(`action="BLOCK" ip-address="10.("`), []string{"2:52: rule: ip-address: "}},
		{"prefix", rules(`<rule action="BLOCK" ip-address="10.0.0.0/8"/><rule action="BLOCK" ip-address="fd00::/8"/>`), nil},
		{"prefix with host bits", rule(`action="BLOCK" ip-address="10.1.2.3/8"`), []string{"2:49: rule: ip-address: 10.1.2.3/8 has bits set after its first 8 [write 10.0.0.0/8]"}},
		{"prefix too long", rule(`action="BLOCK" ip-address="10.0.0.0/33"`), []string{`2:49: rule: ip-address: "10.0.0.0/33" is neither a prefix`}},
		{"prefix of both families", rule(`action="BLOCK" ip-address="::ffff:10.0.0.0/104"`), []string{"2:49: rule: ip-address: ::ffff:10.0.0.0/104: an IPv4 address inside IPv6"}},
		{"pattern with a slash", rule(`action="BLOCK" ip-address="[^/]*"`), nil},
		{"host and address", rule(`action="BLOCK" host="x" ip-address="y"`), []string{"2:58: warning: rule: ip-address is ignored, because host is given"}},
		{"empty is absent", rule(`action="BLOCK" host="" ip-address="" application="" users="" groups="" ports="" destination="" destination-port="" profile-id="" username=""`), nil},
		{"port 0 in ports", rule(`action="BLOCK" ports="0"`), []string{"2:44: rule: wrong ports: 0 is not between 1 and 65535"}},
		{"empty user", rule(`action="BLOCK" users="a,,b"`), []string{"2:44: rule: users: a name is empty"}},
		{"profile by name", root(`<profiles><profile id="p1" name="rock" host="h"/></profiles><filter-engine>` + `<rule action="TUNNEL" profile-id="rock"/></filter-engine>`), []string{`2:110: rule: there is no profile "rock" [profiles are referred to by their id: "p1"]`}},
		{"profile that is almost there", root(`<profiles><profile id="bastion" host="h"/></profiles><filter-engine>` + `<rule action="TUNNEL" profile-id="bastoin"/></filter-engine>`), []string{`2:103: rule: there is no profile "bastoin" [did you mean bastion?]`}},
		{"unknown profile of a direct rule", rule(`action="DIRECT" profile-id="p"`), []string{`2:50: rule: there is no profile "p" [it has no profiles]`}},
		{"no server", rule(`action="tunnel"`), []string{"2:30: rule: TUNNEL has no server to go to"}},
		{"no server for FTP", rule(`action="FTP-PROXY"`), []string{"2:30: rule: FTP-PROXY has no server to go to", "2:30: warning: rule: FTP-PROXY is not built yet"}},
		{"no conclusion from a misspelt rule", rule(`action="TUNNEL" profil-id="p"`), []string{"2:38: rule: profil-id is not an attribute"}},
		{"destination", rule(`action="TUNNEL" hostname-from-app="yes" destination="a b"`), []string{`2:75: rule: destination: host "a b" has the character`}},
		{"destination of a direct rule", rule(`action="DIRECT" destination="a"`), []string{"2:16: warning: rule: destination and destination-port have no effect with DIRECT"}},
		{"pseudo-ip and fallback", rule(`host="x" action="TUNNEL" hostname-from-app="yes" pseudo-ip="yes" fallback-to-plain="yes"`), []string{"2:82: warning: rule: with pseudo-ip, fallback-to-plain has no address"}},
		{"pseudo-ip and direct", rule(`host="x" action="DIRECT" pseudo-ip="yes"`), []string{"2:58: warning: rule: pseudo-ip has no effect with DIRECT"}},
		{"pseudo-ip without host", rule(`action="TUNNEL" hostname-from-app="yes" pseudo-ip="yes"`), []string{"2:73: warning: rule: pseudo-ip has no effect without host"}},
		{"username from the program", rule(`action="TUNNEL" hostname-from-app="yes" username-from-app="yes"`), []string{"2:81: warning: rule: username-from-app has no effect but with FTP-TUNNEL and FTP-PROXY"}},
		{"username from a file", rule(`action="TUNNEL" hostname-from-app="yes" username="/etc/user"`), nil},
		{"username with a control character", rule(`action="TUNNEL" hostname-from-app="yes" username="a&#9;b"`), []string{`2:72: rule: username: user "a\tb" has a control character`}},
		{"FTP", rule(`action="ftp-proxy" hostname-from-app="yes"`), []string{"2:30: warning: rule: FTP-PROXY is not built yet: flows decided by this rule are refused"}},
		{"default action", root(`<filter-engine default-action="TUNNEL"/>`), []string{`2:32: filter-engine: default-action: "TUNNEL" is not one of DIRECT, BLOCK`}},
		{"at signs", root(`<filter-engine ftp-filter-at-signs="yes"/>`), []string{"2:16: warning: filter-engine: ftp-filter-at-signs: not built yet"}},

		// pools
		{"pools", root(`<filter-engine ip-generate-start="10.9.8.0" ip6-generate-start="fd00::1:0:0:0"/>`), nil},
		{"pool of the other family", root(`<filter-engine ip-generate-start="fd00::" ip6-generate-start="10.0.0.0"/>`), []string{"2:35: filter-engine: ip-generate-start: ", "2:63: filter-engine: ip6-generate-start: "}},
		{"pool that does not start a block", root(`<filter-engine ip-generate-start="198.18.0.1"/>`), []string{"2:35: filter-engine: ip-generate-start: 198.18.0.1 is not the first address of a block of at least 8 bits [write 198.18.0.0]"}},
		{"pool of loopback", root(`<filter-engine ip-generate-start="127.0.0.0"/>`), []string{"2:35: filter-engine: ip-generate-start: 127.0.0.0 cannot be given to a program"}},
		{"no address", root(`<filter-engine ip-generate-start="pool"/>`), []string{`2:35: filter-engine: ip-generate-start: "pool" is not an address`}},

		// the older pair
		{"unknown dns", rules(`<dns id="d1"/><filter dns-id="d2" action="BLOCK"/><filter dns-id="d1" action="BLOCK"/>`), []string{`2:46: filter: there is no dns "d2" [did you mean d1?]`}},
		{"dns after its filter", rules(`<filter dns-id="d" action="BLOCK"/><dns id="d"/>`), nil},
		{"dns that is not used", rules(`<dns id="d"/>`), []string{`2:16: warning: dns: no filter refers to dns "d"`}},
		{"second dns", rules(`<dns id="d"/><dns id="d"/><filter dns-id="d" action="BLOCK"/>`), []string{`2:38: dns: there is a second dns "d"`}},
		{"wrong dns of two filters", rules(`<dns id="d" host="("/><filter dns-id="d" action="BLOCK"/><filter dns-id="d" action="BLOCK"/>`), []string{"2:34: dns: host: "}},
		{"filter without server", rules(`<dns id="d"/><filter dns-id="d" action="TUNNEL"/>`), []string{"2:56: filter: TUNNEL has no server to go to: there is neither a profile nor the host that the program asked for [add profile-id=\"...\"]"}},
		{"unknown network", rules(`<network id="office"/><dns id="d" network-id="ofice"/><filter dns-id="d" action="BLOCK"/>`), []string{`2:16: warning: network: no dns refers to network "office": it has no effect`, `2:62: dns: there is no network "ofice" [did you mean office?]`}},
		{"second network", rules(`<network id="n" address="10.0.0.0/8"/><network id="n"/><dns id="d" network-id="n"/><filter dns-id="d" action="BLOCK"/>`), []string{`2:67: network: there is a second network "n"`}},
		{"network without a name", rules(`<network id="" ip-generate-start="10.9.8.0"/>`), []string{`2:29: network: the network has no id`}},
		{"networks", rules(`<network id="a" address="10.1.0.0/16" domain="Office.Example."/><network id="b" address="fd00::" domain=""/><network id="c" address="" ip-generate-start="198.18.128.0"/>` +
			`<dns id="d" network-id="a"/><filter dns-id="d" action="DIRECT"/><dns id="e" network-id="b"/><filter dns-id="e" action="BLOCK"/>`), nil},
		{"address of a network", rules(`<network id="c" ip-generate-start="198.18.128.0" address="office"/><network id="d" ip6-generate-start="fd00::" address="10.1.2.3/16"/><network id="e" ip6-generate-start="fd00::" address="fe80::1%eth0"/>`), []string{
			`2:74: network: address: "office" is neither a prefix nor an address [write it as 10.1.0.0/16`,
			"2:136: network: address: 10.1.2.3/16 has bits set after its first 16 [write 10.1.0.0/16]", `2:203: network: address: "fe80::1%eth0" is neither`}},
		{"address in IPv6", rules(`<network id="c" ip-generate-start="198.18.128.0" address="::ffff:10.1.0.0"/>`), []string{"2:74: network: address: ::ffff:10.1.0.0: an IPv4 address inside IPv6 is IPv4 [write the IPv4 address]"}},
		{"pattern for a domain", rules(`<network id="c" ip-generate-start="198.18.128.0" domain="*.example.com"/><network id="d" ip-generate-start="198.18.128.0" domain="a b"/>`), []string{
			`2:73: network: domain: "*.example.com" is not a domain; there are no patterns here [write the domain itself: office.example.com]`, `2:146: network: domain: host "a b" has the character ' '`}},
		{"pool of a network", rules(`<network id="c" ip-generate-start="198.18.0.1"/>`), []string{"2:51: network: ip-generate-start: 198.18.0.1 is not the first address"}},

		// logging, static tunnels
		{"logging", root(`<logging><log-events facility="local8"/></logging>`), []string{`2:32: log-events: facility: "local8"`}},
		{"log file", root(`<logging><log-events>KEX_*<log-target type="syslog" file="/x"/></log-events></logging>`), []string{"2:59: log-target: file goes with type file, not with syslog [take out one of them]"}},
		{"log nowhere", root(`<logging><log-target/><log-target type="file"/><log-target type="file" file=""/></logging>`), []string{
			`2:10: log-target: it says no file to log to [add file="...", or write type="syslog"]`, "2:23: log-target: it says no file", "2:48: log-target: it says no file"}},
		{"log without directory", root(`<logging><log-target file="/nonexistent/events.log"/></logging>`), []string{
			"2:28: warning: log-target: /nonexistent/events.log cannot be logged to: write to /nonexistent: no such file or directory [connections go on without this log"}},
		{"log to a directory", root(`<logging><log-events>*<log-target type="file" file="/tmp"/></log-events></logging>`), []string{
			"2:53: warning: log-target: /tmp cannot be logged to: is not a file (d"}},
		{"unknown events", root("<logging><log-events>\n  KEX_succes Connector_filter_rule\tConnector_*\n Nothing_?</log-events></logging>"), []string{
			"3:3: warning: log-events: there is no event KEX_succes [did you mean KEX_success?]",
			"4:2: warning: log-events: there is no event Nothing_? [ssh-broker-events(5) lists them all]"}},
		{"events around a target", root(`<logging><log-events>Nil<log-target type="discard"/>Nul</log-events></logging>`), []string{
			"2:22: warning: log-events: there is no event Nil", "2:53: warning: log-events: there is no event Nul"}},
		{"events taken before", root(`<logging><log-events>KEX_*</log-events><log-events severity="error">KEX_failure</log-events></logging>`), []string{
			"2:40: warning: log-events: it never counts: those before it have all its events"}},
		{"events after the rest", root(`<logging><log-events severity="notice"/><log-events>KEX_failure</log-events><log-events/></logging>`), []string{
			"2:41: warning: log-events: it never counts: the one at 2:10 takes every event that is left [put the one without names last]",
			"2:77: warning: log-events: it never counts"}},
		{"very many events", root("<logging><log-events>" + strings.Repeat("* ", 201) + "</log-events></logging>"), []string{"2:10: log-events: it names more than 200 events"}},
		{"tunnels", root(`<static-tunnels><tunnel type="TCP" listen-port="0"/></static-tunnels>`), []string{`2:49: tunnel: listen-port: "0"`}},
		{"good tunnels", root(`<profiles><profile id="p" host="h"><tunnels><local-tunnel listen-port="1" dst-host="d" dst-port="2"/><local-tunnel type="socks" listen-port="3"/></tunnels></profile></profiles>` +
			`<static-tunnels><tunnel listen-port="1" dst-host="d" dst-port="2" profile="p"/><tunnel type="local" listen-port="3" listen-address="::1" dst-host="d" dst-port="2" profile="p"/>` +
			`<tunnel type="SOCKS-PROXY" listen-port="5" dst-port="0" profile=""/><tunnel type="http-connect" listen-port="6" listen-address="*"/><tunnel type="socks" listen-port="7" allow-relay="yes" profile="p"/></static-tunnels>`), nil},
		{"tunnels that lead nowhere", root(`<static-tunnels><tunnel listen-port="1" dst-host="d" profile="p"/>
<tunnel listen-port="2" dst-host="d" dst-port="1"/>
<tunnel type="socks" listen-port="3"/>
<tunnel type="socks" listen-port="4" dst-host="d" profile="p"/>
<tunnel type="socks-proxy" listen-port="5" profile="p"/>
<tunnel type="socks-proxy" listen-port="6" listen-address="eth0"/>
<tunnel type="socks-proxy" listen-port="7"/><tunnel type="http-connect" listen-port="7"/>
<tunnel listen-port="8" dst-host="-d" dst-port="1" profile="p"/></static-tunnels>`), []string{
			"2:17: tunnel: a tcp tunnel has no destination [add dst-host and dst-port, or the service of a gateway]",
			`3:1: tunnel: a tcp tunnel has no profile to go through [add profile=`,
			`4:1: tunnel: a socks tunnel has no profile`,
			"5:1: tunnel: the program says where a socks tunnel leads [take dst-host",
			`6:53: tunnel: profile: the filter rules decide where a socks-proxy tunnel goes [take it out, or write type="socks"]`,
			`7:60: tunnel: listen-address: "eth0" is not an address`,
			"8:45: tunnel: there is a second tunnel at 127.0.0.1:7, the first is at 8:1",
			`9:35: tunnel: dst-host: host "-d" begins with a hyphen`}},
		{"tunnels to services", root(`<profiles><profile id="p" host="h"><tunnels><local-tunnel listen-port="1" service="a"/></tunnels></profile></profiles>
<static-tunnels><tunnel listen-port="2" service="a" profile="p"/>
<tunnel type="http-connect" listen-port="3" service="a"/>
<tunnel type="http-connect" listen-port="4" profile="p"/>
<tunnel type="http-connect-chain" listen-port="5"/>
<tunnel listen-port="6" service="a b" profile="p"/>
<tunnel listen-port="7" service="a" dst-host="d" dst-port="1" profile="p"/></static-tunnels>`), []string{
			`2:84: local-tunnel: service: the profile "p" leads to no gateway, which alone has services [take it out, or name a profile of protocol tls`,
			`3:50: tunnel: service: the profile "p" leads to no gateway`,
			"4:54: tunnel: service: the filter rules decide where a http-connect tunnel goes [take it out]",
			`5:54: tunnel: profile: the filter rules decide where a http-connect tunnel goes [take it out, or write type="http-connect-chain"]`,
			"6:1: tunnel: a http-connect-chain tunnel has no profile to go through [add profile=",
			`7:34: tunnel: service: "a b" is not the name of a service [write the name as ssh-broker-ctl services has it]`,
			"8:1: tunnel: the gateway knows where the service leads [take dst-host and dst-port out, or service]"}},
		{"tunnel through nothing", root(`<static-tunnels><tunnel listen-port="1" dst-host="d" dst-port="1" profile="p"/></static-tunnels>`), []string{
			`2:76: tunnel: profile: there is no profile "p"`}},
		{"tunnels that are not built", root(`<profiles><profile id="p" host="h"><tunnels><remote-tunnel listen-port="1" dst-host="d" dst-port="2"/></tunnels></profile></profiles>` +
			`<static-tunnels><tunnel type="ftp" listen-port="1" dst-host="d" dst-port="2" profile="p"/></static-tunnels>`), []string{
			"2:45: warning: remote-tunnel: not built yet", "2:164: warning: tunnel: type ftp is not built yet: the port is not opened"}},
		{"tunnels of a profile that are judged", root(`<profiles><profile id="p" host="h"><tunnels><local-tunnel type="socks-proxy" listen-port="1"/></tunnels></profile></profiles>`), []string{
			"2:65: local-tunnel: a socks-proxy tunnel belongs to no profile"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := readFile("f", []byte(tt.in), testEnv(), "/home/ann/.ssh2")
			merge(testEnv(), "/home/ann/.ssh2", nil, f)
			found := f.Sorted()
			for i := range max(len(found), len(tt.want)) {
				got, want := "nothing", "nothing"
				if i < len(found) {
					p := found[i]
					if p.Pos.File != "f" {
						t.Errorf("%v is not in the file", p)
					}
					got = short(Problems{p})[0] + " [" + p.Hint + "]"
				}
				if i < len(tt.want) {
					want = tt.want[i]
				}
				if !strings.HasPrefix(got, want) {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			}
		})
	}
}

// A file with very many mistakes is refused with a list that ends.
func TestManyProblems(t *testing.T) {
	name := write(t, "f.xml", "<secsh-broker>"+strings.Repeat("<x/>\n", 15000)+"</secsh-broker>")
	_, err := Load(Options{File: name, Env: testEnv()})
	if n := strings.Count(fmt.Sprint(err), "\n"); err == nil || n > 3000 {
		t.Errorf("%d lines", n)
	}
}

// Kinds let a broker keep quiet about what only check-config has to list.
func TestKinds(t *testing.T) {
	c := loadText(t, `<secsh-broker><profiles><profile id="p" host="h" host-type="windows"/></profiles><gui x="y"/><filter-engine><rule action="BLOCK" host="x" ip-address="y"/></filter-engine></secsh-broker>`)
	for kind, want := range map[Kind]string{General: "rule", NotActedOn: "gui", NotBuilt: "profile"} {
		if got := c.Warnings.OfKind(kind); len(got) != 1 || got[0].Element != want {
			t.Errorf("%v: %v", kind, got)
		}
	}
}

// FuzzLoadTwo holds for any bytes as the global and the user's file: Load and Check end
// without a panic, with a configuration or with errors; a good user's file loads beside
// any global one but for what only the two together have wrong.
func FuzzLoadTwo(f *testing.F) {
	all := seeds(f)
	for i, seed := range all {
		f.Add(seed, all[(i+7)%len(all)], i%3 == 0)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, global, user []byte, system bool) {
		// Workers are processes of their own, and one file a run is enough for each.
		o := Options{GlobalFile: filepath.Join(dir, "global.xml"), File: filepath.Join(dir, "user.xml"), System: system, Env: testEnv()}
		for name, data := range map[string][]byte{o.GlobalFile: global, o.File: user} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Load(o)
		if (c == nil) == (err == nil) {
			t.Fatalf("configuration %v, error %v", c, err)
		}
		bad := len(Check(o.File, o).Errors()) > 0
		if bad && err == nil && !system {
			t.Fatalf("check-config refuses what loads: %v", Check(o.File, o).Errors())
		}
	})
}

// FuzzLoad holds for any bytes: no panic, a configuration or an error and never both,
// the same findings each time, each at a place of the file.
func FuzzLoad(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		first, list := understand(t, data)
		second, again := understand(t, data)
		if first != second || list != again {
			t.Fatalf("two readings differ:\n%s\n%s\n%s\n%s", first, second, list, again)
		}
	})
}

// understand reads data as the user's file and describes what came of it.
func understand(t *testing.T, data []byte) (config, findings string) {
	f := readFile("f", data, testEnv(), "/nowhere")
	m := merge(testEnv(), "/nowhere", nil, f)
	(&lint{merged: m, file: f, resolve: func(string) string { return "/nowhere" }}).run()
	found := f.Sorted()
	for i, p := range found {
		if p.Msg == "" || p.Pos.File != "f" || i > 0 && p.Pos.Line > 0 && p.Pos.Before(found[i-1].Pos) {
			t.Fatalf("finding %d: %+v", i, p)
		}
	}
	if len(found.Errors()) > 0 {
		return "", found.Error()
	}
	c, err := m.config()
	if err != nil {
		t.Fatalf("nothing was found wrong, but: %v", err)
	}
	var b strings.Builder
	fmt.Fprintln(&b, lines(c.Filter), c.Pool4, c.Pool6, *c.Defaults, c.Logging)
	for _, id := range m.order {
		for p := c.Profiles[id]; p != nil; p = p.Gateway {
			q := *p
			q.Gateway = nil
			fmt.Fprintf(&b, "%s: %+v\n", id, q)
		}
	}
	return b.String(), schema.Problems(found).Error()
}
