# shellcheck shell=bash disable=SC2154 # common.sh sets what is not set here
# Keys and kubeconfigs, etcd, API server, controller manager and scheduler. They run in node 1's network.

api_url() { echo "https://$(node_ip 1):6443"; }

kubectl_admin() {
  env -u HTTPS_PROXY -u https_proxy -u ALL_PROXY -u all_proxy "$state/bin/kubectl" --kubeconfig "$pki/admin.kubeconfig" "$@"
}

make_pki() {
  [ ! -f "$pki/done" ] || return 0
  rm -rf "$pki" && mkdir -p "$pki"
  (
    cd "$pki"
    ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 "${ec[@]}" -keyout ca.key -out ca.crt -days 365 -subj /CN=tlsfarm-test-cluster
    openssl req "${ec[@]}" -keyout api.key -out api.csr -subj /CN=kube-apiserver
    openssl x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out api.crt -days 365 -extfile <(
      echo "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$(node_ip 1)"
    )
    openssl genrsa -out sa.key 2048
    openssl rsa -in sa.key -pubout -out sa.pub
  ) >"$state/log/pki.log" 2>&1 || die "openssl failed; see $state/log/pki.log"
  user admin admin system:masters
  user controller-manager system:kube-controller-manager ""
  user scheduler system:kube-scheduler ""
  user kube-proxy system:kube-proxy ""
  local n
  for n in $(seq "$max_nodes"); do user "kubelet$n" "system:node:node$n" system:nodes; done
  touch "$pki/done"
}

user() { # FILE USER GROUPS: a static token and a kubeconfig that uses it
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$1,\"$3\"" >>"$pki/tokens.csv"
  cat >"$pki/$1.kubeconfig" <<EOF
apiVersion: v1
kind: Config
clusters: [{name: tlsfarm-test, cluster: {server: "$(api_url)", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]
users: [{name: $1, user: {token: $token}}]
contexts: [{name: tlsfarm-test, context: {cluster: tlsfarm-test, user: $1}}]
current-context: tlsfarm-test
EOF
}

start_control_plane() {
  cp "$cluster_dir/audit-policy.yaml" "$state/audit-policy.yaml" # this checkout may go before the cluster does
  start 1 etcd "$state/bin/etcd" --data-dir "$state/etcd" --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
  start 1 kube-apiserver "$state/bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address="$(node_ip 1)" --secure-port=6443 --service-cluster-ip-range=10.96.0.0/16 \
    --tls-cert-file="$pki/api.crt" --tls-private-key-file="$pki/api.key" --client-ca-file="$pki/ca.crt" --token-auth-file="$pki/tokens.csv" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --kubelet-preferred-address-types=InternalIP --allow-privileged=true \
    --audit-policy-file="$state/audit-policy.yaml" --audit-log-path="$state/log/audit.log" --audit-log-maxsize=64 --audit-log-maxbackup=2
  wait_for 60 "the API server" kubectl_admin get --raw /readyz
  start 1 kube-controller-manager "$state/bin/kube-controller-manager" --kubeconfig "$pki/controller-manager.kubeconfig" --leader-elect=false \
    --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" --use-service-account-credentials=true --authentication-skip-lookup=true
  start 1 kube-scheduler "$state/bin/kube-scheduler" --kubeconfig "$pki/scheduler.kubeconfig" --leader-elect=false --authentication-skip-lookup=true
}
