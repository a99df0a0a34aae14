//! Decryption of inputs: AES-CTR with the key of the request and the IV of each file.
//!
//! CTR keeps the length and starts again at every file, so a range of an object decrypts alone.
//! There is no authentication: what comes out must be proven by digest or block checksums. Keys
//! that a master key has to open, and SM4, are refused by name.

use aes::{Aes128, Aes192, Aes256};
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use pitr_proto::backup::CipherInfo;
use pitr_proto::encryptionpb::file_encryption_info::Mode;
use pitr_proto::encryptionpb::{EncryptionMethod, FileEncryptionInfo};
use sha2::{Digest, Sha256};

use super::error::ImportError;

/// A data key. `Debug` does not show it.
#[derive(Clone)]
pub(super) struct CipherKey {
    method: EncryptionMethod,
    key: Vec<u8>,
}

impl std::fmt::Debug for CipherKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CipherKey")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

impl CipherKey {
    /// The key of a request; `None` when it has none or says "plaintext".
    pub(super) fn of(info: Option<&CipherInfo>) -> Result<Option<CipherKey>, ImportError> {
        let Some(info) = info else {
            return Ok(None);
        };
        let refuse = |what: String| Err(ImportError::Encryption(what));
        let Ok(method) = EncryptionMethod::try_from(info.cipher_type) else {
            return refuse(format!("unknown method {}", info.cipher_type));
        };
        let wanted = match method {
            EncryptionMethod::Unknown | EncryptionMethod::Plaintext => return Ok(None),
            EncryptionMethod::Aes128Ctr => 16,
            EncryptionMethod::Aes192Ctr => 24,
            EncryptionMethod::Aes256Ctr => 32,
            EncryptionMethod::Sm4Ctr => return refuse("SM4 is not supported".to_owned()),
        };
        if info.cipher_key.len() != wanted {
            let got = info.cipher_key.len();
            return refuse(format!("a key of {got} bytes for {}", method.as_str_name()));
        }
        Ok(Some(CipherKey {
            method,
            key: info.cipher_key.to_vec(),
        }))
    }

    /// Decrypts bytes that begin at `offset` of their file.
    pub(super) fn decrypt(
        &self,
        iv: &[u8],
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), ImportError> {
        match self.method {
            EncryptionMethod::Aes128Ctr => self.run::<Ctr128BE<Aes128>>(iv, offset, data),
            EncryptionMethod::Aes192Ctr => self.run::<Ctr128BE<Aes192>>(iv, offset, data),
            _ => self.run::<Ctr128BE<Aes256>>(iv, offset, data),
        }
    }

    fn run<C: KeyIvInit + StreamCipher + StreamCipherSeek>(
        &self,
        iv: &[u8],
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), ImportError> {
        let wrong = |what: &str| ImportError::Encryption(what.to_owned());
        let mut cipher = C::new_from_slices(&self.key, iv)
            .map_err(|_| wrong("the IV of the file is not 16 bytes long"))?;
        let long = || wrong("the file is too long");
        cipher.try_seek(offset).map_err(|_| long())?;
        cipher.try_apply_keystream(data).map_err(|_| long())
    }

    /// Names key and IV in a cache key without giving them away.
    pub(super) fn fingerprint(&self, iv: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((self.method as i32).to_le_bytes());
        hash.update(&self.key);
        hash.update(iv);
        hash.finalize().into()
    }
}

/// Key and IV of a log slice; `None` when it is not encrypted.
pub(super) fn of_slice<'a>(
    info: Option<&'a FileEncryptionInfo>,
    cipher: Option<&CipherInfo>,
) -> Result<Option<(CipherKey, &'a [u8])>, ImportError> {
    let Some(info) = info else {
        return Ok(None);
    };
    let refuse = |what: &str| Err(ImportError::Encryption(what.to_owned()));
    match &info.mode {
        Some(Mode::PlainTextDataKey(_)) => match CipherKey::of(cipher)? {
            Some(key) => Ok(Some((key, &info.file_iv))),
            None => refuse("the slice is encrypted, but the request has no key for it"),
        },
        Some(Mode::MasterKeyBased(_)) => refuse(
            "the slice is encrypted with a key that a master key opens, which is not supported; \
             restore it with BR into TiKV",
        ),
        None => refuse("the slice has encryption info without a mode"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST SP 800-38A, F.5.1, F.5.3 and F.5.5: the same plaintext and counter, three key lengths.
    #[test]
    fn the_published_vectors_decrypt_from_any_offset() {
        let plain = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
            .unwrap();
        let iv = hex::decode("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").unwrap();
        for (method, key, cipher) in [
            (
                EncryptionMethod::Aes128Ctr,
                "2b7e151628aed2a6abf7158809cf4f3c",
                "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff",
            ),
            (
                EncryptionMethod::Aes192Ctr,
                "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
                "1abc932417521ca24f2b0459fe7e6e0b090339ec0aa6faefd5ccc2c6f4ce8e94",
            ),
            (
                EncryptionMethod::Aes256Ctr,
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5",
            ),
        ] {
            let info = CipherInfo {
                cipher_type: method as i32,
                cipher_key: hex::decode(key).unwrap().into(),
            };
            let key = CipherKey::of(Some(&info)).unwrap().unwrap();
            let mut data = hex::decode(cipher).unwrap();
            key.decrypt(&iv, 0, &mut data).unwrap();
            assert_eq!(data, plain);
            let mut tail = hex::decode(cipher).unwrap()[21..].to_vec();
            key.decrypt(&iv, 21, &mut tail).unwrap();
            assert_eq!(tail, plain[21..]);
            assert!(key.decrypt(&iv[1..], 0, &mut tail).is_err());
        }
    }

    #[test]
    fn what_cannot_be_decrypted_is_refused_by_name() {
        let info = |cipher_type, len| CipherInfo {
            cipher_type,
            cipher_key: vec![1; len].into(),
        };
        for (cipher_type, len, words) in [(5, 16, "SM4"), (4, 16, "16 bytes"), (99, 16, "unknown")]
        {
            let error = CipherKey::of(Some(&info(cipher_type, len))).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(CipherKey::of(Some(&info(1, 0))).unwrap().is_none());
        let slice = |mode| FileEncryptionInfo {
            mode,
            ..Default::default()
        };
        let master = slice(Some(Mode::MasterKeyBased(Default::default())));
        let plain = slice(Some(Mode::PlainTextDataKey(Default::default())));
        for (info, words) in [
            (master, "master key"),
            (plain, "no key"),
            (slice(None), "mode"),
        ] {
            let error = of_slice(Some(&info), None).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(of_slice(None, None).unwrap().is_none());
    }
}
