"""`isthmus lab --kubernetes`: a real Kubernetes cluster over two sites, its network from the one file.

``programs``     the binaries that somebody else brings, and what is missing
``image``        an image of nothing: its containers see this machine's programs, read-only
``control``      etcd, kube-apiserver, kube-controller-manager, kube-scheduler; access to them
``nodes``        machines with a containerd, a kubelet and a kube-proxy of their own
``cluster``      all of it, and what is asked of it
``checks``       what must hold
"""
